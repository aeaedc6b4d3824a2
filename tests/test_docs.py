"""What README.md and docs/ show is so: code runs, links lead somewhere, commands parse, tables come from the JSON."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command import splore

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
HEADLINES = ("engine", "training", "cifar10-resnet20-cpu")
sys.path.insert(0, str(ROOT / "benchmarks"))


def test_the_page_of_deployment_names_each_operator_that_runs_natively():
    from splore.capture.lowering import LOWERINGS

    known = {op._schema.name.removeprefix("aten::") if hasattr(op, "_schema") else op.__name__ for op in LOWERINGS}
    section = (ROOT / "docs/deployment.md").read_text().split("## What runs natively")[1].split("\n## ")[0]
    named = {name for line in section.splitlines() if line.startswith("| ") for name in re.findall(r"`(\w+)`", line)}
    assert named == known


def blocks(page, *languages):
    """The code blocks of a page that are marked with one of these languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def prose(page):
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(page):
    """Each `splore ...` of a page, in code blocks and in the running text, without comments."""
    code = [line for block in blocks(page, "", "sh") for line in block.replace("\\\n", " ").splitlines()]
    code += re.findall(r"`([^`\n]+)`", prose(page))
    found = [re.search(r"(?:^|\s)splore ([a-z]+\b.*)", line) for line in code]
    return [match[1].partition("  #")[0].rstrip() for match in found if match]


COMMANDS = sorted({words for page in PAGES for words in commands(page)})


def test_the_readme_is_read_in_a_few_minutes():
    assert len(README.read_text().split()) <= 650


@pytest.mark.slow
def test_the_code_of_the_readme_runs_as_it_stands(tmp_path):
    (tmp_path / "snippet.py").write_text("\n".join(blocks(README, "python")))
    done = subprocess.run(
        [sys.executable, "snippet.py"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.partition("%")[0]) > 85
    assert {path.name for path in tmp_path.iterdir()} >= {"digits.safetensors", "digits.splore"}


def test_the_tables_of_the_readme_are_those_of_the_json():
    import readme

    assert README.read_text() == readme.with_tables(README.read_text()), "make docs writes them anew"


def test_the_tables_of_exports_and_of_nets_are_those_of_the_json():
    import exports
    import matrix

    rows = {name: json.loads((ROOT / f"benchmarks/results/{name}.json").read_text()) for name in ("exports", "matrix")}
    assert exports.table(rows["exports"]) in (ROOT / "docs/deployment.md").read_text()
    assert matrix.page(rows["matrix"]).strip() == (ROOT / "docs/matrix.md").read_text().strip()


def test_the_headlines_are_those_of_the_json():
    results = {name: json.loads((ROOT / f"benchmarks/results/{name}.json").read_text()) for name in HEADLINES}
    fast = [row for row in results["engine"] if (row["net"], row["batch"], row.get("bits", 32)) == ("vgg19", 32, 32)]
    speedup = next(row["speedup"] for row in fast if "family 26" in row["hardware"]["cpu"])
    run = results["cifar10-resnet20-cpu"]
    dense, ours = (run["stages"][place] for place in (0, -1))
    step = next(
        row["step_ratio"] for row in results["training"] if row["net"] == "vgg19" and "Xeon" in row["hardware"]["cpu"]
    )
    lost = dense["accuracy"] - ours["accuracy"]
    text = " ".join(README.read_text().split())
    for headline in (
        f"**{speedup:.1f}x faster**",
        f"**{ours['params_kept']:.0%} of the parameters, {lost:.1f} points lost**".replace("%", " %"),
        f"{dense['accuracy']:.2f} → {ours['accuracy']:.2f} %",
        f"**{step:.2f}x the time**",
    ):
        assert headline in text


def test_the_tables_of_the_results_are_those_of_the_json():
    scripts = [ROOT / "benchmarks" / name for name in ("table.py", "speed.py", "paper/table.py")]
    made = "".join(
        subprocess.run([sys.executable, script], capture_output=True, text=True).stdout for script in scripts
    )
    assert made.count("\n## ") >= 6
    page = (ROOT / "docs/results.md").read_text()
    assert [line for line in made.splitlines() if line] == [
        line for line in page.splitlines() if line and not line.startswith("![")
    ], "make docs writes them anew"


def test_the_table_of_when_l_pays_is_that_of_the_json():
    made = subprocess.run(
        [sys.executable, "benchmarks/when_l_pays.py"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert made.count("\n") >= 5 and made in (ROOT / "docs/when_l_pays.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_within_the_project_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{page.name} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", place.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    for name in re.findall(
        r"`((?:src|docs|recipes|examples|benchmarks|native|tests)/[\w./-]+\.\w+)`", page.read_text()
    ):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_parses(words, tmp_path):
    words = re.sub(r"\bRECIPE\b", "recipes/digits.yaml", re.sub(r"\[[^\]]*\]", "", words))
    command, *options = shlex.split(re.sub(r"\b(recipes|examples)/", rf"{ROOT}/\1/", words))
    if command == "run" and any(option.startswith("--out") for option in options):
        done = splore(command, *options, "--print_config", folder=tmp_path)
        assert done.code == 0 and "train:" in done.out, done
        return
    shown = splore(command, "--help", folder=tmp_path)
    assert shown.code == 0, shown
    for option in options:
        if option.startswith("--"):
            assert re.search(rf"{re.escape(option.partition('=')[0])}\b", shown.out), option


@pytest.mark.parametrize(
    "line", re.findall(r"^\|.*\.(?:py|cpp)`.*", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
)
def test_the_tour_names_what_is_there(line):
    path, *names = re.findall(r"`([^`]+)`", line)
    text = (ROOT / path).read_text()
    for name in (name for name in names if "/" not in name):
        *_, function = re.split(r"\.|::", name)
        assert re.search(rf"\bdef {function}\(|\b{re.escape(name)}\(", text), (path, name)


def test_the_version_is_one():
    for name, pattern in (("CITATION.cff", r"^version: (\S+)$"), ("CHANGELOG.md", r"^## \[(\d\S*)\]")):
        found = re.search(pattern, (ROOT / name).read_text(), re.MULTILINE)
        assert found and found[1] == VERSION, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_target_of_make_is_one_that_make_help_lists(page):
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = {line.split()[0] for line in shown.splitlines()}
    named = [line for block in blocks(page, "", "sh") for line in block.splitlines()]
    named += re.findall(r"`([^`\n]+)`", prose(page))
    for line in named:
        match = re.match(r"make ([a-z]+)", line)
        assert not match or match[1] in targets, f"{page.name}: {line}"
