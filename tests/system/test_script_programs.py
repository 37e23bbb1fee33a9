"""Scripts that run as whole programs: typed on a host, in a keep like any other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.fleet import Fleet

GREET = 'print("hello", ...scriptArgs.slice(1)); console.error("to error"); exit(3)\n'
COUNT = "let lines = 0, letters = 0, line; while ((line = readline()) !== null) { lines++; letters += line.length }\n"
THROWS = 'function inner() {\n  throw new TypeError("no such customer");\n}\n\nawait null;\ninner();\n'
TYPED = "interface Order { total: number }\nconst order: Order = { total: 42 };\nprint(order.total as number);\n"


@pytest.fixture
def place(fleet: Fleet) -> Iterator[Path]:
    """A directory of the host with scripts in it."""
    place = fleet.host.path / "scripts"
    place.mkdir(exist_ok=True)
    sources = {
        "greet.js": GREET,
        "count.js": COUNT + "print(lines, letters);\n",
        "throws.js": THROWS,
        "typed.ts": TYPED,
        "wrong.js": "let a = ;\n",
        "loop.js": "print('on'); for (;;);\n",
        "eats.js": "const held = []; for (;;) held.push(new Uint8Array(1 << 20).fill(1));\n",
        "deep.js": "const names = []; function deeper() { deeper() }\n"
        "for (const way of [deeper, () => eval('('.repeat(1e5)), () => JSON.parse('['.repeat(1e5))])\n"
        "  try { way() } catch (error) { names.push(error.name) }\nprint(...names)\n",
        "hello.py": "import sys\nfor line in sys.stdin:\n    print('hello', line.strip(), *sys.argv[1:])\n"
        "sys.stderr.write('to error\\n')\nsys.exit(3)\n",
        "throws.py": "def inner():\n    return {}['customer']\n\ninner()\n",
        "loop.py": "print('on')\nwhile True: pass\n",
    }
    for name, text in sources.items():
        (place / name).write_text(text)
    yield place


def typed(fleet: Fleet, place: Path, script: str) -> str:
    """What a person's shell prints there."""
    done = fleet.host.run(
        ["bash", "-uo", "pipefail", "-c", f"cd {place}; {script}"],
        env={"KEEPFLEET_MANAGER": f"127.0.0.1:{fleet.port}", "HOME": "/root"},
        timeout=120,
    )
    return done.stdout


def test_a_script_has_arguments_both_outputs_and_an_exit_code(fleet: Fleet, place: Path) -> None:
    said = typed(fleet, place, "keepctl run --rm greet.js -- one 'two three' 2>err; echo $?; cat err")
    assert said.splitlines()[:3] == ["hello one two three", "3", "to error"]
    assert fleet.left_over() == []


def test_it_reads_standard_input_to_its_end(fleet: Fleet, place: Path) -> None:
    assert typed(fleet, place, "printf 'é\\nzwei\\n\\nrest' | keepctl run --rm count.js") == "4 9\n"


def test_what_it_throws_is_said_with_its_own_lines_and_ends_with_1(fleet: Fleet, place: Path) -> None:
    said = typed(fleet, place, "keepctl run --rm throws.js 2>&1; echo $?").splitlines()
    assert said[:3] == ["uncaught TypeError: no such customer", "    at inner (throws.js:2:13)", said[2]]
    assert "throws.js:6" in said[2]
    assert said[-1] == "1"


def test_a_syntax_error_is_the_scripts_own(fleet: Fleet, place: Path) -> None:
    said = typed(fleet, place, "keepctl run --rm wrong.js 2>&1; echo $?").splitlines()
    assert said[0].startswith("uncaught SyntaxError: ")
    assert said[-1] == "1"


def test_typescript_runs_without_its_types(fleet: Fleet, place: Path) -> None:
    assert typed(fleet, place, "keepctl run --rm typed.ts") == "42\n"


def test_the_limits_of_a_keep_hold_for_it(fleet: Fleet, place: Path) -> None:
    said = typed(fleet, place, "keepctl run --rm --cpu-time 1s loop.js 2>&1; echo $?").splitlines()
    assert said[0] == "on"
    assert "over its processor time limit of 1 s" in said[1]
    assert said[-1] == "124"
    said = typed(fleet, place, "keepctl run --rm --memory 32M eats.js 2>&1; echo $?").splitlines()
    assert said[0] == "uncaught InternalError: out of memory"
    assert said[-1] == "1"
    assert typed(fleet, place, "keepctl run --rm deep.js") == "RangeError RangeError RangeError\n"


def test_it_runs_in_the_strict_profile_and_with_the_fast_compiler(fleet: Fleet, place: Path) -> None:
    assert typed(fleet, place, "keepctl run --rm --profile strict greet.js 2>&1; echo $?").splitlines()[0] == "hello"
    assert typed(fleet, place, "keepctl run --rm --compiler fast greet.js 2>&1; echo $?").splitlines()[0] == "hello"


def test_a_script_in_python_runs_as_one_in_javascript_does(fleet: Fleet, place: Path) -> None:
    said = typed(fleet, place, "printf 'moon\nsun' | keepctl run --rm hello.py -- one 2>err; echo $?; cat err")
    assert said.splitlines()[:4] == ["hello moon one", "hello sun one", "3", "to error"]
    said = typed(fleet, place, "keepctl run --rm throws.py 2>&1; echo $?")
    assert said.splitlines()[:4] == [
        "Traceback (most recent call last):",
        '  File "throws.py", line 4, in <module>',
        '  File "throws.py", line 2, in inner',
        "KeyError: customer",
    ]
    assert said.splitlines()[-1] == "1"
    said = typed(fleet, place, "keepctl run --rm --cpu-time 1s loop.py 2>&1; echo $?")
    assert said.splitlines()[0] == "on"
    assert said.splitlines()[-1] == "124"
    assert fleet.left_over() == []


def test_python_is_refused_where_the_profile_has_no_exceptions(fleet: Fleet, place: Path) -> None:
    said = typed(fleet, place, "keepctl run --rm --profile strict hello.py 2>&1; echo $?").splitlines()
    assert "cannot take the script: it is Python, which the strict profile has not" in said[0]
    assert said[-1] == "126"


def test_a_script_of_the_store_runs_as_a_module_does(fleet: Fleet, place: Path) -> None:
    try:
        said = typed(
            fleet,
            place,
            "keepctl store add --in-place greet.js greet:1 >/dev/null; keepctl run --rm greet:1 -- stored 2>/dev/null; "
            "keepctl run --rm greet:1 -- again 2>/dev/null; true",
        )
    finally:
        fleet.host.run(["rm", "-rf", "/var/lib/keepfleet/store"])
    assert said.splitlines() == ["hello stored", "hello again"]
