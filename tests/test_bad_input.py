"""Files and environments that are not what they should be: one line that names them and message what to do."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, toy_arguments

import main
from models.teachers import load_similarities
from models.teachers.captions import read_text_features
from models.weights import load_weights
from util import devices, distributed, errors
from util.errors import UserError, run_script
from util.files import read_array, read_arrays, read_json, read_text, write_array, write_json, write_text


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "empty|No data left"),
        (b"hello", "magic string|pickle|something else"),
        (npy(np.arange(9))[:-1], "Failed to read|reshape"),
        (npy(np.array([None], dtype=object)), "pickled objects, which are never read"),
        (npy(np.zeros(3, dtype=complex)), "it holds complex128"),
        (b"PK\x03\x04", "is not a plain NumPy array"),
    ],
)
def test_an_array_that_is_anything_else_is_one_line(tmp_path, content, message):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_array(tmp_path / "a.npy", "make it again")
    assert str(error.value).endswith("; make it again") and "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [">i2", ">f8", "?", "<u1", ">U3", "<U3"])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (3, 0)])
def test_arrays_are_read_in_this_machines_byte_order(tmp_path, dtype, shape):
    array = np.asarray(np.arange(np.prod(shape, dtype=int)).reshape(shape) % 2).astype(dtype)
    for order in "CF":
        np.save(tmp_path / "a.npy", np.asarray(array, order=order))
        read = read_array(tmp_path / "a.npy")
        assert read.dtype.isnative and read.shape == array.shape and (read == array).all()


def test_an_npz_file_whose_checksum_is_wrong_is_one_line(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(1000), y=np.arange(3))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[4000] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match="CRC"):
        read_arrays(tmp_path / "a.npz", ("x", "y"))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5_000_000, b'{"a": 1} x', b'"\\ud800"', b"NaN"],
    ids=["empty", "cut", "not UTF-8", "nested", "a long number", "two values", "half a character", "no number"],
)
def test_what_is_not_json_is_one_line(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match="; write it again") as error:
        read_json(tmp_path / "a.json", hint="write it again")
    assert len(str(error.value)) < 600


def test_a_write_that_the_disk_refuses_leaves_the_old_array(tmp_path):
    """NumPy's own way to write does not notice that the last flush failed."""
    write_array(tmp_path / "a.npy", np.arange(10))
    code = f"""
import resource, sys
sys.path.insert(0, {str(REPOSITORY)!r})
import numpy as np
from util.files import write_array
resource.setrlimit(resource.RLIMIT_FSIZE, (3072, 3072))
write_array({str(tmp_path / "a.npy")!r}, np.arange(440))  # 3,648 bytes: fewer than a buffer
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "File too large" in done.stderr
    assert (read_array(tmp_path / "a.npy") == np.arange(10)).all()


def test_a_write_that_the_system_refuses_names_the_file_and_the_way_out(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "full").symlink_to("/dev/full")
    for write, path in ((write_json, tmp_path / "file/a.json"), (write_text, tmp_path / "full")):
        with pytest.raises(
            UserError, match=rf"{path} cannot be written \(.*\); make room there, or write to a different"
        ):
            write(path, "text")


WEIGHTS = {
    "whole numbers": (
        lambda state: {name: tensor.int() for name, tensor in state.items()},
        "it is torch.int32",
    ),
    "complex": (
        lambda state: {name: tensor + 0j for name, tensor in state.items()},
        "it is torch.complex64",
    ),
    "numbers for names": (lambda state: dict(enumerate(state.values())), "fit"),
    "a list": (lambda state: list(state.values()), "tensors"),
    "a pickle": (lambda state: {"weight": io.BytesIO}, "save its tensors alone"),
}


@pytest.mark.parametrize("what", WEIGHTS)
def test_weights_of_a_different_kind_are_one_line(tmp_path, what, recwarn):
    change, message = WEIGHTS[what]
    network, path = torch.nn.Linear(3, 2), tmp_path / "weights.pt"
    torch.save(change(network.state_dict()), path)
    with pytest.raises(UserError, match=message) as error:
        load_weights(network, path, head=())
    assert str(path) in str(error.value)


def test_text_features_that_are_0_or_no_float32_are_reported(tmp_path):
    for features in (np.eye(3, 8) * [[1], [1], [0]], np.full((3, 8), 1e300), np.array([["a"]] * 3)):
        write_array(tmp_path / "text.npy", features)
        with pytest.raises(UserError, match="expected finite floats"):
            read_text_features(str(tmp_path / "text.npy"), (3, 8))


def test_similarities_that_contradict_each_other_are_reported(tmp_path):
    def save(similarity) -> None:
        np.savez(
            tmp_path / "s.npz",
            images=np.array(["a", "b", "a"]),
            classes=np.array(["x", "y"]),
            similarity=np.array(similarity, dtype=np.float32),
        )

    save([[1, 2], [3, 4], [1, 2]])
    assert load_similarities(tmp_path / "s.npz", np.array(["a"]), ["y"])[0].tolist() == [[2]]
    save([[1, 2], [3, 4], [1, 9]])
    with pytest.raises(UserError, match="rows for the same image that contradict each other"):
        load_similarities(tmp_path / "s.npz", np.array(["a"]), ["y"])
    save([[1, 2], [3, 4], [1e37, 1e37]])
    with pytest.raises(UserError, match="contradict"):
        load_similarities(tmp_path / "s.npz", np.array(["a"]), ["y"])


def test_similarities_that_no_softmax_can_take_are_reported(tmp_path):
    np.savez(tmp_path / "s.npz", images=np.array(["a"]), classes=np.array(["x"]), similarity=np.full((1, 1), 1e37))
    with pytest.raises(UserError, match="finite numbers of at most 1e"):
        load_similarities(tmp_path / "s.npz", np.array(["a"]), ["x"])


def ends(capsys, function) -> tuple[int, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_script(function)
    return stop.value.code, capsys.readouterr().err


def test_an_error_that_nobody_foresaw_is_one_line_with_its_traceback_in_a_file(capsys, monkeypatch):
    def unforeseen():
        raise LookupError("two\nlines")

    status, err = ends(capsys, unforeseen)
    assert status == 1 and len(err.splitlines()) == 1
    assert "a mistake in this program: LookupError: two lines (test_bad_input.py, line" in err
    (path,) = (word for word in err.split() if word.endswith(".txt"))
    assert "raise LookupError" in read_text(path)
    os.unlink(path)
    monkeypatch.setattr(sys, "argv", ["main.py", "--traceback"])
    assert "raise LookupError" in ends(capsys, unforeseen)[1]


def test_every_command_knows_traceback_and_no_setting_is_called_so(toy, capsys):
    config = main.configuration.parse([*toy_arguments(toy), "--traceback"])
    assert "traceback" not in config.hparams and capsys.readouterr().err == ""


def test_an_error_of_several_lines_is_shown_in_one(capsys):
    def several():
        raise UserError("size mismatch:\n\tone\n\ttwo\x1b[2J")

    assert ends(capsys, several) == (2, "-c: error: size mismatch: one two?[2J\n".replace("-c", errors._program()))


@pytest.mark.parametrize(
    "error, message",
    [
        (MemoryError("8 TB"), "this machine is out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "this machine is out of memory"),
    ],
)
def test_too_little_memory_is_one_line(capsys, error, message):
    def greedy():
        raise error

    status, err = ends(capsys, greedy)
    assert status == 2 and message in err and len(err.splitlines()) == 1


def test_processes_that_do_not_find_each_other_are_one_line(monkeypatch):
    def alone(*arguments):
        raise RuntimeError("nobody there")

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setattr(torch.distributed, "init_process_group", alone)
    with pytest.raises(UserError, match=r"do not find each other \(nobody there\)"):
        distributed.initialize(torch.device("cpu"))


@pytest.mark.parametrize("name", ["--batch-size", "--eval-batch-size", "--epochs", "--workers", "--threads"])
def test_whole_numbers_of_more_than_64_bits_are_reported(name):
    with pytest.raises(SystemExit) as stop:
        main.configuration.parse([name, str(2**63)])
    assert stop.value.code == 2


def script(code: str, **options) -> subprocess.CompletedProcess:
    """A command of one function, as a process."""
    start = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\nfrom util.errors import UserError, run_script\n"
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, timeout=60, **options)


def test_what_a_terminal_cannot_show_is_escaped():
    done = script("run_script(lambda: print('±'))", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\xb1\n", "")


def test_what_only_torchrun_sets_is_not_read_without_it(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "abc")
    assert devices.default_workers() >= 1


def test_output_that_nobody_reads_is_no_traceback():
    for close in (">&-", "2>&-", "| true"):
        code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from util.errors import run_script; "
        code += "run_script(lambda: [print(i) for i in range(100000)])"
        shell = ["bash", "-c", f'"$0" -c "$1" {close}', sys.executable, code]
        done = subprocess.run(shell, capture_output=True, text=True, timeout=60)
        assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 1, done.stderr


def test_an_interruption_while_libraries_are_imported_is_one_line():
    done = script("raise KeyboardInterrupt")
    assert (done.returncode, done.stderr) == (130, "-c: interrupted\n")
    lines = (REPOSITORY / "main.py").read_text().splitlines()
    imports = [line for line in lines if line.startswith(("import", "from"))]
    assert imports[0].startswith("from util.errors")  # before PyTorch, which takes seconds


def test_a_warning_is_one_line():
    done = script("import warnings; run_script(lambda: warnings.warn('two\\nlines'))")
    assert done.stderr == "-c: warning: two lines\n"


@pytest.mark.parametrize(
    "script, name, value",
    [
        ("seeds.sh", "SEEDS", "$(touch FILE)"),
        ("seeds.sh", "SEEDS", "0; touch FILE"),
        ("thresholds.sh", "THRESHOLDS", "*"),
        ("temperatures.sh", "TEMPERATURES", "`touch FILE`"),
        ("slurm.sh", "SLURM_ARRAY_TASK_ID", "abc"),
        ("slurm.sh", "SLURM_ARRAY_TASK_ID", "1e touch FILE;"),
    ],
)
def test_values_of_a_sweep_are_numbers_and_are_not_evaluated(tmp_path, script, name, value):
    jobs, made = tmp_path / "jobs.txt", tmp_path / "made"
    jobs.write_text(f"touch {made}\n")
    value = value.replace("FILE", str(made))
    environment = os.environ | {name: value, "LOGS": str(tmp_path / "logs"), "PYTHON": "false"}
    shell = [REPOSITORY / "sweeps" / script, *([jobs] if script == "slurm.sh" else [])]
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and name in done.stderr and len(done.stderr.splitlines()) == 1
    assert not made.exists()
