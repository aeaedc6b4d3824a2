"""What the code keeps to, beside format, lint, types and the import contract: short files and functions, no copies."""

import ast
from collections import defaultdict
from itertools import combinations
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path for folder in ("src", "tests", "benchmarks", "examples", "docs") for path in ROOT.glob(f"{folder}/**/*.py")
)
MOST_LINES, MOST_LINES_OF_A_FUNCTION, RUN = 300, 70, 6


def name(path):
    return str(path.relative_to(ROOT))


def trees():
    return [(path, ast.parse(path.read_text())) for path in FILES]


def test_no_file_is_longer_than_300_lines():
    lengths = {name(path): len(path.read_text().splitlines()) for path in FILES}
    assert not {path: length for path, length in lengths.items() if length > MOST_LINES}


def test_no_function_is_longer_than_70_lines():
    functions = [
        (f"{name(path)}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1)
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert not [each for each in functions if each[1] > MOST_LINES_OF_A_FUNCTION]


def lines_that_count(path, tree):
    """Number and text of the lines that are neither blank, a comment, mere brackets nor an import."""
    imports = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    lines = [(number, line.strip()) for number, line in enumerate(path.read_text().splitlines(), 1)]
    return [
        (number, line)
        for number, line in lines
        if number not in imports and any(map(str.isalnum, line)) and not line.startswith("#")
    ]


def test_no_run_of_six_equal_lines_stands_in_two_places():
    places = defaultdict(list)
    for path, tree in trees():
        lines = lines_that_count(path, tree)
        for start in range(len(lines) - RUN + 1):
            run = lines[start : start + RUN]
            places[tuple(line for _, line in run)].append((name(path), run[0][0], run[-1][0]))
    copies = [
        f"{one[0]}:{one[1]} and {other[0]}:{other[1]}"
        for found in places.values()
        for one, other in combinations(found, 2)
        if one[0] != other[0] or one[2] < other[1]
    ]
    assert not copies
