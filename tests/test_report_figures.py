"""What the report on a run says: its figures against slow, obvious ones, and the lines where something is missing."""

import base64
import io
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from command import TINY, splore
from PIL import Image

import splore as library
from splore.commands.run import _write_report
from splore.report import page, write
from splore.report.chart import milliseconds
from splore.report.curves import curve_charts
from splore.report.energy import curves_between
from splore.report.fronts import Point, front
from splore.report.layer_section import layers_of
from splore.report.mistakes import find_mistakes
from splore.report.pictures import LEVELS, image_uri, largest, layer_pictures, matrix_uri
from splore.report.run_folder import LeftOut, open_runs
from splore.vision import build


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    done = splore("run", *TINY, "--cut.ranks=keep", "--out=run", folder=folder)
    assert done.code == 0, done
    return folder / "run"


@pytest.fixture
def run(out):
    return open_runs([out], own_code=True)[0]


def decoded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


def test_a_point_of_an_energy_curve_is_what_the_largest_entries_hold_and_the_ring_is_what_the_cut_kept():
    model = build("digits_cnn", 10, 1)
    library.decompose(model, library.Design(rank=2))
    cut = build("digits_cnn", 10, 1)
    library.decompose(cut, library.Design(rank=2))
    cut.load_state_dict(model.state_dict())
    library.prune(cut, params=0.1)
    curves = curves_between(model, cut)
    assert [curve.layer for curve in curves] == list(library.decomposed_layers(model))
    for curve in curves:
        S = library.decomposed_layers(model)[curve.layer].S.detach().double().numpy()
        ordered = np.sort((S**2).ravel())[::-1]
        for entries, energy in curve.points:
            count = round(entries * S.size)
            assert count >= 1 and energy == pytest.approx(ordered[:count].sum() / ordered.sum(), abs=1e-9)
        kept = library.decomposed_layers(cut)[curve.layer].S.detach().numpy() != 0
        assert curve.cut == pytest.approx((kept.sum() / S.size, (S[kept] ** 2).sum() / ordered.sum()))


def test_a_pixel_is_the_largest_entry_of_its_block_with_its_sign():
    matrix = torch.randn(7, 10)
    found = largest(matrix, (3, 4))
    assert found.shape == (3, 3)
    for i in range(3):
        for j in range(3):
            block = matrix[3 * i : 3 * i + 3, 4 * j : 4 * j + 4].flatten().tolist()
            assert found[i, j] == max(block, key=abs)


def test_a_picture_of_a_matrix_has_the_sign_as_colour_and_the_magnitude_as_opacity():
    matrix = torch.tensor([[0.0, 1.0, -1.0], [0.5, -0.5, 3.0]])
    pixels = np.asarray(decoded(matrix_uri(matrix)).convert("RGBA")).astype(int)
    assert pixels[0, 0, 3] == 0
    for (i, j), value in np.ndenumerate(matrix.clamp(-1, 1).numpy()):
        assert abs(pixels[i, j, 3] / 255 - abs(value)) <= 0.5 / LEVELS + 0.01
    assert (pixels[0, 1, :3] == pixels[1, 0, :3]).all() and (pixels[0, 2, :3] == pixels[1, 1, :3]).all()
    assert pixels[0, 1, 1] > pixels[0, 1, 0] and pixels[0, 2, 2] > pixels[0, 2, 1]  # green, violet


def test_an_image_is_shown_as_it_is_and_large_ones_smaller():
    grey, colour = torch.rand(1, 8, 8), torch.rand(3, 200, 100)
    np.testing.assert_allclose(np.asarray(decoded(image_uri(grey))) / 255, grey[0], atol=0.003)
    assert decoded(image_uri(colour, 50)).size == (25, 50)


def test_all_pictures_of_a_net_together_stay_small():
    model = build("vgg16", 10, 3)
    library.decompose(model, library.Design(rank=2))
    library.prune(model, params=0.05)
    pictures = layer_pictures(model)
    assert {picture.layer for picture in pictures} == set(library.decomposed_layers(model))
    assert sum(len(uri) for picture in pictures for uri in picture.parts.values()) < 2_000_000


def test_no_point_of_a_front_is_beaten_and_every_other_one_is():
    draw = torch.Generator().manual_seed(1)
    costs, accuracies = torch.randint(1, 12, (2, 40), generator=draw).tolist()
    points = [
        Point(str(i), "S alone", a, {"params": c}) for i, (c, a) in enumerate(zip(costs, accuracies, strict=True))
    ]
    kept = front(points, "params")

    def beats(one, other):
        no_worse = one.costs["params"] <= other.costs["params"] and one.accuracy >= other.accuracy
        return no_worse and (one.costs["params"], one.accuracy) != (other.costs["params"], other.accuracy)

    unbeaten = {(p.costs["params"], p.accuracy) for p in points if not any(beats(other, p) for other in points)}
    assert [(p.costs["params"], p.accuracy) for p in kept] == sorted(unbeaten)


def test_the_counts_and_the_images_of_mistakes_are_those_of_the_nets_one_image_at_a_time(run):
    nets = [run.net("after fine-tuning"), run.net("dense")]
    counts = dict.fromkeys([(a, b) for a in (True, False) for b in (True, False)], 0)
    wrong = []
    for x, y in run.data.test.epoch(0):
        for image, label in zip(x, y.tolist(), strict=True):
            rights = tuple(int(net(image[None]).argmax()) == label for net in nets)
            counts[rights] += 1
            wrong += [] if all(rights) else [(rights, str(label))]
    found = find_mistakes(run)
    assert found.counts == counts and found.samples == found.of == 40
    shown = [(rights, case.label) for rights, cases in found.cases.items() for case in cases]
    assert sorted(shown) == sorted(wrong) and wrong
    for rights, cases in found.cases.items():
        for case in cases:
            assert tuple(answer.right for answer in case.answers.values()) == rights
            assert all(answer.right == (answer.name == case.label) for answer in case.answers.values())


def test_the_parts_of_a_layer_add_up_to_its_parameters(run):
    for layer in layers_of(run, [], None):
        module = run.net("after fine-tuning").get_submodule(layer.cost.name)
        assert layer.factors == module.A.numel() + module.B.numel()
        assert layer.cost.nnz == module.S.count_nonzero()


def test_the_curves_go_on_from_training_to_fine_tuning_and_end_where_the_stages_say(run):
    for name, chart in curve_charts(run).items():
        stages, _, lines, _, ends = (layer["data"]["values"] for layer in chart["layer"])
        assert [mark["epoch"] for mark in stages] == [0, 2]
        ours = [row for row in lines if row["series"] == "A·B + S"]
        assert [(row["stage"], row["epoch"]) for row in ours] == [
            ("training", 1), ("training", 2), ("fine-tuning", 3), ("fine-tuning", 4),
        ]  # fmt: skip
        assert {row["stage"]: row["epoch"] for row in ends if row["series"] != "dense"} == {
            "after training": 2, "after the cut": 2, "after fine-tuning": 4,
        }  # fmt: skip
        last = ends[-1]
        assert ours[-1][name] == pytest.approx(last[name])


@pytest.mark.parametrize(
    ("ms", "said"), [(0.03214, "0.0321 ms"), (1.4567, "1.46 ms"), (99.94, "99.9 ms"), (1234.5, "1234 ms")]
)
def test_milliseconds_have_three_digits(ms, said):
    assert milliseconds(ms) == said


def test_code_of_ones_own_is_not_imported_unless_it_is_allowed(out, tmp_path):
    run = open_runs([out])[0]
    with pytest.raises(LeftOut, match="tests_support:tiny.*--own-code"):
        run.net("dense")
    with pytest.raises(LeftOut, match="tests_support:blobs.*--own-code"):
        _ = run.data
    text = write([out], tmp_path / "page.html").read_text()
    assert "--own-code imports it, if you trust it." in text and "A test image of the class" not in text


def test_what_is_missing_is_left_out_with_a_line_and_the_rest_is_there(out, tmp_path):
    shutil.copytree(out, tmp_path / "run")
    for file in ("trained.safetensors", "model.safetensors", "dense.safetensors"):
        (tmp_path / "run" / file).unlink()
    text = write([tmp_path / "run"], tmp_path / "page.html", own_code=True).read_text()
    assert "has no trained.safetensors." in text and "has no model.safetensors." in text
    assert "The run&#39;s folder has no net." in text and "accuracy on the test images" in text


def test_figures_that_are_no_numbers_are_not_drawn(out, tmp_path):
    shutil.copytree(out, tmp_path / "run")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line.get("stage") == "dense")
    first["test_loss"] = float("nan")
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = write([tmp_path / "run"], tmp_path / "page.html").read_text()
    charts = json.loads(text.partition('id="charts">')[2].partition("</script>")[0], parse_constant=pytest.fail)
    drawn = [len(charts[f"r0-curves-{number}"]["layer"][2]["data"]["values"]) for number in (0, 1)]
    assert drawn == [8, 7]


@pytest.mark.parametrize("method", ["dense", "low-rank", "sparse"])
def test_every_method_has_a_report(method, tmp_path):
    words = [word for word in TINY if not word.startswith("--cut.params")]
    done = splore("run", *words, f"--method={method}", "--cut.params=0.9", "--out=run", folder=tmp_path)
    assert done.code == 0, done
    text = (tmp_path / "run" / "report.html").read_text()
    assert text.count("</article>") == 1 and "A test image of the class" in text


def test_a_run_without_a_baseline_has_a_report(tmp_path):
    done = splore("run", *TINY, "--baseline=false", "--out=run", folder=tmp_path)
    assert done.code == 0, done
    text = (tmp_path / "run" / "report.html").read_text()
    assert "no dense baseline" in text and "alone wrong" not in text


def test_folders_without_a_finished_run_are_refused(out, tmp_path):
    splore("report", "nowhere", folder=tmp_path).refused("nowhere", "found none")
    (tmp_path / "empty").mkdir()
    splore("report", "empty", folder=tmp_path).refused("empty", "no summary.json")
    shutil.copytree(out, tmp_path / "half")
    (tmp_path / "half" / "summary.json").unlink()
    splore("report", "half", folder=tmp_path).refused("half", "not finished", "--resume")
    (tmp_path / "half" / "summary.json").write_text(json.dumps({"stages": []}))
    splore("report", "half", folder=tmp_path).refused("half", "damaged")


@pytest.mark.parametrize("library", ["vl_convert", "jinja2", "PIL"])
def test_where_a_library_is_not_installed_the_report_says_what_to_install(library, out, tmp_path, monkeypatch, capsys):
    page.bundle.cache_clear()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=f'{library}.*pip install "splore\\[report\\]"'):
        write([out], tmp_path / "page.html")
    shutil.copytree(out, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    _write_report(tmp_path / "run", [])  # what a run does at its end
    assert capsys.readouterr().out.startswith("no report.html: ") and not (tmp_path / "run" / "report.html").exists()
