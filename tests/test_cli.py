"""The command line: finding commands; one line and the right exit status for what goes wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from kvtq_hw import __version__, commands
from kvtq_hw.commands.frame.cli import EXTRA_OF_MODULE, cli, run
from kvtq_hw.commands.frame.options import (
    OutputFile,
    code_option,
    command_line,
    json_option,
)
from kvtq_hw.contract.codes import DEFAULT_CODE, STANDARD_CODES, CacheCode


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["kvtq-hw", "de"], ["plain,decode"]),
        (["kvtq-hw", "decode", "--backe"], ["plain,--backend"]),
        (["kvtq-hw", "area", "--preset", "smol"], ["plain,smollm2"]),
        (["kvtq-hw", "area", "--preset", "mine"], ["file,mine"]),
    ],
)
def test_the_shell_completes(words, offered, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setenv("_KVTQ_HW_COMPLETE", "bash_complete")
    with pytest.raises(SystemExit, match="0"):
        run([])
    assert capsys.readouterr().out.splitlines() == offered


COMMANDS = cli.list_commands(click.Context(cli))


@pytest.fixture
def flow(tmp_path, monkeypatch):
    """Write modules of commands that stand alone, in the place of the real ones."""
    monkeypatch.setattr(commands, "__path__", [str(tmp_path)])

    def write(name: str, body: str, docstring: str = "Do something.") -> None:
        source = f'"""{docstring}"""\nimport click\n@click.command()\n{body}\n'
        (tmp_path / f"{name}.py").write_text(source)

    yield write
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(f"{commands.__name__}.{file.stem}", None)


# --- finding commands -----------------------------------------------------------------------------


def test_module_becomes_a_command(flow, capsys) -> None:
    flow("count_cycles", "@click.argument('n', type=int)\ndef command(n): print(n + 1)")
    assert run(["count-cycles", "41"]) == 0
    assert capsys.readouterr().out == "42\n"


def test_help_lists_commands_without_importing_them(flow, capsys) -> None:
    flow("broken", "def command(): pass\nraise RuntimeError('imported')", "Break\n\nand more.")
    flow("works", "def command(): pass", "Work.")
    assert run(["--help"]) == 0
    assert re.findall(r"^  (\w+)  +(.+)$", capsys.readouterr().out, re.MULTILINE)[-2:] == [
        ("broken", "Break"),
        ("works", "Work."),
    ]


def test_help_imports_no_library_of_an_extra() -> None:
    script = (
        "import sys; from kvtq_hw.commands.frame.cli import EXTRA_OF_MODULE, run; "
        "status = run(['--help']); "
        "sys.exit(status or ', '.join(EXTRA_OF_MODULE.keys() & sys.modules.keys()) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_version(capsys) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"kvtq-hw, version {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str, capsys) -> None:
    assert run([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: kvtq-hw {command} ")


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        ("def command(): return 3", 3, ""),
        ("@click.pass_context\ndef command(ctx): ctx.exit(4)", 4, ""),
        (
            "def command():\n"
            "    from kvtq_hw.contract.errors import UserError\n"
            "    raise UserError('lanes: 3\\nis not allowed')",
            1,
            "kvtq-hw: error: lanes: 3 is not allowed\n",
        ),
        ("def command(): raise click.ClickException('no')", 1, "kvtq-hw: error: no\n"),
        ("def command(): raise KeyboardInterrupt", 130, "\nkvtq-hw: error: interrupted\n"),
        (
            "def command(): raise ModuleNotFoundError('No module', name='torch.nn')",
            1,
            "kvtq-hw: error: torch: not installed, and this command needs it; "
            "get it with: pip install 'kvtq-hw[golden]'\n",
        ),
        (
            "def command(): raise ModuleNotFoundError('No module', name='cocotb')",
            1,
            "kvtq-hw: error: cocotb: not installed, and this command needs it; "
            "get it with: pip install 'kvtq-hw[sim]'\n",
        ),
    ],
)
def test_error_is_one_line_and_a_status(flow, capsys, body: str, status: int, line: str) -> None:
    flow("fails", body)
    assert run(["fails"]) == status
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", line)


BUGS = {
    "a module of our own": "raise ModuleNotFoundError('No module', name='kvtq_hw.gone')",
    "a mistake": "return [][1]",
    "a panic of Rust": "raise type('PanicException', (BaseException,), {})('rust')",
    "an end of a file that click takes for Ctrl-D": "raise EOFError('gzip')",
    "a file that we forgot": "open('gone')",
}


@pytest.mark.parametrize("body", BUGS.values(), ids=BUGS)
def test_our_own_mistakes_leave_a_crash_file(flow, capsys, tmp_path, monkeypatch, body) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    flow("wrong", f"@click.argument('words', nargs=-1)\ndef command(words):\n    {body}")
    assert run(["wrong", "two words"]) == 70
    captured = capsys.readouterr()
    (file,) = (tmp_path / "cache" / "kvtq-hw" / "crashes").iterdir()
    assert captured.out == ""
    assert re.fullmatch(
        rf"kvtq-hw: error: unexpected \w+; please report it with the crash file '{file}'\n",
        captured.err,
    )
    text = file.read_text()
    assert text.startswith(f"kvtq-hw {__version__}\narguments: wrong 'two words'\nPython 3.")
    assert "\nTraceback (most recent call last):\n" in text and 'wrong.py", line' in text
    assert f"\nclick {metadata.version('click')}\n" in text


def test_crash_file_goes_to_the_temporary_folder(flow, capsys, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    flow("wrong", "def command(): 1 / 0")
    assert run(["wrong"]) == 70
    (file,) = (tmp_path / "tmp").iterdir()
    assert "ZeroDivisionError" in file.read_text()
    (line,) = capsys.readouterr().err.splitlines()
    assert f"crash file '{file}' (crash file '{tmp_path}/file/" in line
    assert line.endswith("is not a folder)")


def test_crash_without_any_file_says_where_it_was(flow, capsys, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    flow("wrong", "def command(): 1 / 0")
    assert run(["wrong"]) == 70
    (line,) = capsys.readouterr().err.splitlines()
    assert "division by zero in " in line and "wrong.py, line 4, command" in line


def test_a_full_disk_behind_stdout_is_one_line(tmp_path) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "kvtq_hw", "layout", "--preset", "tiny"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert result.returncode == 1
    assert result.stderr == "kvtq-hw: error: output: No space left on device\n"


def test_a_full_disk_behind_stderr_leaves_the_status() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "kvtq_hw", "layout", "--preset", "nosuch"]
        assert subprocess.run(command, stderr=full).returncode == 1


def test_arguments_that_are_no_text_are_refused(tmp_path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "kvtq_hw", "decode", "--prompt", b"caf\xe9"],
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "kvtq-hw: error: argument 'caf\\udce9' is not UTF-8 text\n"


def test_a_long_message_is_cut_in_its_middle(flow, capsys) -> None:
    flow("long", "def command(): raise click.ClickException('begin ' + 'x' * 9999 + ' end')")
    assert run(["long"]) == 1
    line = capsys.readouterr().err
    assert line.startswith("kvtq-hw: error: begin xxx") and line.endswith("xxx end\n")
    assert len(line) < 1100


def test_what_controls_a_terminal_is_shown(flow, capsys) -> None:
    flow("beeps", "def command(): raise click.ClickException('a\\x1b[2J\\u202e caf\xe9')")
    assert run(["beeps"]) == 1
    assert capsys.readouterr().err == "kvtq-hw: error: a\\x1b[2J\\u202e caf\xe9\n"


def test_warnings_are_lines(flow, capsys) -> None:
    flow("warns", "def command():\n    from kvtq_hw.contract.errors import warn\n    warn('a\\nb')")
    assert run(["warns"]) == 0
    assert capsys.readouterr().err == "kvtq-hw: warning: a b\n"


def test_missing_extra_while_a_command_is_imported(flow, capsys) -> None:
    flow("heavy", "def command(): pass\nraise ModuleNotFoundError('No module', name='numpy')")
    assert run(["heavy"]) == 1
    assert capsys.readouterr().err.startswith("kvtq-hw: error: numpy: not installed")


def test_unknown_command_names_the_known_ones(flow, capsys) -> None:
    flow("one", "def command(): pass")
    flow("two", "def command(): pass")
    assert run(["three"]) == 2
    assert capsys.readouterr().err == (
        "kvtq-hw: error: command: 'three' is unknown; allowed are one, two\n"
    )


def test_no_command_shows_help(capsys) -> None:
    assert run([]) == 2
    assert "Usage: kvtq-hw [OPTIONS] COMMAND [ARGS]..." in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_option_is_one_line(command: str, capsys) -> None:
    assert run([command, "--no-such-option"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"kvtq-hw: error: No such option.*\n", captured.err)


PRESET_ERRORS = {
    "nosuch": "preset: 'nosuch' is unknown; allowed are llama3-8b, smollm2, tiny "
    "or the path of a .toml file",
    "missing.toml": "configuration file 'missing.toml': No such file or directory",
    "bad.toml": "lanes: 3 does not divide head_dim 8; allowed are divisors of 8 from 2 on",
}


def commands_with_preset() -> list[str]:
    context = click.Context(cli)
    commands = {name: cli.get_command(context, name) for name in COMMANDS}
    return [
        name
        for name, command in commands.items()
        if any(p.name == "config" for p in command.params)
    ]


@pytest.mark.parametrize("preset", PRESET_ERRORS)
@pytest.mark.parametrize("command", commands_with_preset())
def test_bad_preset_is_one_line(command: str, preset: str, tmp_path) -> None:
    (tmp_path / "bad.toml").write_text('name = "bad"\nhead_dim = 8\nquery_group = 1\nlanes = 3\n')
    result = subprocess.run(
        [sys.executable, "-m", "kvtq_hw", command, "--preset", preset],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"kvtq-hw: error: {PRESET_ERRORS[preset]}\n"


@pytest.mark.parametrize("printing", ["print('x')", "click.echo('x')", "print('x' * 100_000)"])
def test_reader_that_goes_away_leaves_no_traceback(tmp_path, printing: str) -> None:
    module = f'"""Print."""\nimport click\n@click.command()\ndef command(): {printing}\n'
    (tmp_path / "say.py").write_text(module)
    script = (
        "import sys; from kvtq_hw import commands; from kvtq_hw.commands.frame import cli; "
        "commands.__path__ = [sys.argv[1]]; sys.argv[1:] = ['say']; cli.main()"
    )
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (1, "")


def test_every_module_of_an_extra_is_installed_here() -> None:
    """A name that nothing installs would turn our own mistake into advice that does not help."""
    script = Path(sys.executable).with_name("kvtq-hw")
    assert script.is_file()
    for module in EXTRA_OF_MODULE:
        __import__(module)


@pytest.mark.parametrize(
    ("command", "option", "index"),
    [
        ("decode", "code", None),
        ("capture", "code", None),
        ("allocate", "code", None),
        ("layout", "code", None),
        ("sweep", "codes", 0),
        ("compare", "codes", 0),
        ("report", "codes", 0),
        ("eval", "codes", 1),  # behind the unquantized model
    ],
)
def test_one_default_code_for_every_command(command: str, option: str, index: int | None) -> None:
    context = click.Context(cli)
    parameters = cli.get_command(context, command).params
    (default,) = [p.default for p in parameters if p.name == option]
    assert (default if index is None else default[index]) == (
        "balanced:3/2,sinks=4,window=32,feedback"
    )


@pytest.mark.parametrize("option", ["--code", "--json", "--model", "--quality"])
def test_shared_options_are_declared_in_one_place(option: str) -> None:
    """Commands and benchmarks take what `options` declares: one way to spell, to read, to write."""
    root = Path(__file__).resolve().parent.parent
    files = [*root.glob("kvtq_hw/**/*.py"), *root.glob("benchmarks/*.py")]
    declared = re.compile(rf'click\.option\(\s*"{option}"')
    found = [file.name for file in files if declared.search(file.read_text("utf-8"))]
    assert found == ["options.py"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ([], "a.txt --code balanced:3/2 --code balanced:2/1"),
        (["--code", "balanced:2/1,window=3,sinks=1"], "a.txt --code balanced:2/1,window=3,sinks=1"),
        (["--route", "--block", "packer"], "a.txt --code balanced:3/2 --code balanced:2/1 --block "
         "packer --route"),
    ],
)  # fmt: skip
def test_a_recorded_command_is_spelled_as_it_was_given(given: list[str], line: str) -> None:
    codes = [CacheCode("balanced", 3, 2), CacheCode("balanced", 2, 1)]

    @click.command("measure")
    @click.argument("file", type=click.Path(path_type=Path))
    @code_option("Codes.", codes)
    @click.option("--block")
    @click.option("--route", "routed", is_flag=True)
    @click.option("--jobs", type=int, default=2)  # decides no number
    def command(**options: object) -> None:
        click.echo(command_line("file", "--code", "--block", "--route"))

    result = CliRunner().invoke(command, ["a.txt", *given])
    assert result.output == f"kvtq-hw measure {line}\n"


def test_standard_codes_differ_in_the_digits_of_the_body_alone() -> None:
    assert STANDARD_CODES[0] == DEFAULT_CODE
    assert len(set(STANDARD_CODES)) == 4
    assert {code.with_digits(1, 1) for code in STANDARD_CODES} == {DEFAULT_CODE.with_digits(1, 1)}


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_one_option(command: str) -> None:
    """Checked before the work, its folder made where it is missing, written by one function."""
    parameters = cli.get_command(click.Context(cli), command).params
    (shared,) = click.command()(json_option(lambda json_file: None)).params
    for parameter in parameters:
        if "--json" in parameter.opts:
            assert (parameter.name, parameter.help) == (shared.name, shared.help)
            assert isinstance(parameter.type, OutputFile)
