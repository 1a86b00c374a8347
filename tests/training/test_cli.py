"""Every mistake is one sentence on stderr and an exit code; help is quick."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading

import pytest
from tiny_runs import ldadam, options

from ldadam import __main__ as entry


@pytest.fixture(scope="module")
def help_and_modules():
    """The help text, and the top-level modules that were loaded to show it."""
    script = (
        "import sys; from ldadam.cli import run; code = run(['pretrain', '--help']); "
        "print(code, *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    text, _, last_line = done.stdout.strip().rpartition("\n")
    return text, set(last_line.split())


def test_help_loads_none_of_the_training_packages(help_and_modules):
    text, modules = help_and_modules
    assert "--error-feedback" in text
    assert "0" in modules
    assert not {"transformers", "datasets", "matplotlib", "accelerate", "tokenizers"} & modules


def test_help_does_not_load_torch(help_and_modules):
    assert "torch" not in help_and_modules[1]


def test_the_command_itself_answers_without_torch():
    """Half a second where torch alone takes two; seconds are not asserted, since they are the machine's."""
    command = [sys.executable, "-X", "importtime", "-m", "ldadam", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.split("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if line.count("|") == 2}
    assert {"typer", "ldadam"} <= loaded
    assert not {"torch", "numpy", "transformers"} & loaded
    assert "Exit codes: 0 success, 1 failure, 2 a request that cannot be met, 130" in " ".join(done.stdout.split())


@pytest.mark.parametrize(("typed", "offered"), [(["pl"], "plan"), (["plan", "--error-d"], "--error-dtype")])
def test_a_shell_completes_commands_and_options(typed, offered):
    words = ["ldadam", *typed]
    asked = {"_LDADAM_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(typed))}
    command = [sys.executable, "-m", "ldadam"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **asked})
    assert done.stdout.split() == [offered]


def test_without_the_train_extra_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        entry.main()
    assert "pip install 'ldadam[train]'" in str(stopped.value)


BAD_INPUT = {
    "unknown preset '21m'": {"preset": "21m"},
    "unknown optimizer 'adamv': did you mean adamw?": {"optimizer": "adamv"},
    "rank=40 is too large for every matrix of this model": {"rank": 40},
    "rank must be": {"rank": -3},
    "rho must be": {"rho": 3},
    "lr must be": {"lr": -1},
    "dtype must be one of": {"dtype": "float8"},
    "device must be auto, cpu or cuda": {"device": "tpu"},
    "unknown corpus 'nowhere'": {"corpus": "nowhere"},
    "there is no such file or folder": {"corpus": "./nowhere.txt"},
    "is in no name of the 21 trainable parameters": {"target_modules": "nothing_is_called_this"},
    "rank_overrides must be PATTERN=RANK with commas between, got 'q_proj'": {"rank_overrides": "q_proj"},
    "the pattern 'nothing' is in no name": {"rank_overrides": "nothing=4"},
    "vocab_size must be at least 257": {"vocab_size": 20},
    "too little text": {"corpus": "EMPTY"},
    "is not text: byte 4 is zero": {"corpus": "BINARY"},
}


@pytest.mark.parametrize("sentence", BAD_INPUT)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, corpus, capsys, sentence):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\x7fELF\x00\x01\x02")
    changes = dict(BAD_INPUT[sentence])
    if changes.get("corpus") in ("EMPTY", "BINARY"):
        changes["corpus"] = str(tmp_path / f"{changes['corpus'].lower()}.txt")
    assert ldadam(*options(tmp_path / "run", changes.pop("corpus", corpus), **changes)) == 2
    errors = capsys.readouterr().err
    assert sentence in errors
    assert errors.startswith("ldadam: ")
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_an_unknown_option_is_exit_code_2(capsys):
    assert ldadam("pretrain", "--rnak", "4") == 2
    errors = capsys.readouterr().err
    assert "--rnak" in errors
    assert "Traceback" not in errors


def test_resume_without_a_run_is_exit_code_2(tmp_path, capsys):
    assert ldadam("pretrain", "--resume", "--out", tmp_path / "nowhere") == 2
    assert "holds no run to resume" in capsys.readouterr().err


def test_debug_shows_the_traceback(capsys):
    assert ldadam("pretrain", "--preset", "21m", "--debug") == 2
    errors = capsys.readouterr().err
    assert "Traceback" in errors
    assert errors.strip().splitlines()[-1].startswith("ldadam: unknown preset")


def test_no_command_at_all_is_exit_code_2(capsys):
    assert ldadam() == 2
    assert "pretrain" in capsys.readouterr().out


def test_help_and_success_are_exit_code_0(capsys):
    assert ldadam("--help") == 0
    assert ldadam("plan", "--model", "8x16:1", "--rank", "2", "--device", "cpu") == 0


def test_ctrl_c_in_a_command_that_has_nothing_to_save_is_exit_code_130(monkeypatch, capsys):
    # What Python does at the signal; one that a background job ignores would do nothing.
    monkeypatch.setattr("ldadam.planner.command.run_plan", lambda **_: signal.default_int_handler(signal.SIGINT, None))
    assert ldadam("plan") == 130
    assert capsys.readouterr().err == "ldadam: stopped\n"


STOPPED_BY_SIGTERM = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_DFL)
from ldadam.cli import run
from ldadam.planner import command
command.run_plan = lambda **_: os.kill(os.getpid(), signal.SIGTERM)
code = run(["plan"])
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
sys.exit(code)
"""


@pytest.mark.parametrize(("by_torchrun", "expected"), [(False, (130, "ldadam: stopped\n")), (True, (-15, ""))])
def test_sigterm_before_a_run_has_begun_is_exit_code_130_with_a_word(by_torchrun, expected):
    """But where torchrun ends a process it did so because another one has said what is wrong."""
    launch = {name: "0" for name in ("RANK", "LOCAL_RANK")} | {name: "2" for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    environment = {**os.environ, **(launch if by_torchrun else {})}
    command = [sys.executable, "-c", STOPPED_BY_SIGTERM]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (ended.returncode, ended.stderr) == expected


def test_a_command_runs_outside_of_the_main_thread_too(capsys):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(ldadam("recipes")))
    thread.start()
    thread.join()
    assert codes == [0]


def test_an_unexpected_failure_is_exit_code_1(monkeypatch, capsys):
    def fail(*_, **__):
        raise ZeroDivisionError("by zero\nand more")

    monkeypatch.setattr("ldadam.training.pretrain.pretrain", fail)
    assert ldadam("pretrain") == 1
    assert capsys.readouterr().err == "ldadam: ZeroDivisionError: by zero (--debug shows where)\n"
