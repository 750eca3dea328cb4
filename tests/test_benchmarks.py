"""Every benchmark runs at toy size and prints its tables."""

import pytest
from conftest import command

TOY = "--official 20 --test 10 --image-size 32 --no-pretrained -m timm:test_resnet --teacher models/digits_clip.json"


@pytest.mark.parametrize(
    "script, arguments, rows",
    [
        ("train", f"{TOY} -g cpu", ["train, images/s", "whole epoch, s", "teacher", "VOC (5,717", "COCO (82,081"]),
        ("decode", "--images 6 --size 32", ["resized by PyTorch", "from the cache: memory-mapped file"]),
        ("metrics", "--images 300 --labels 5", ["mAP, this code", "mAP, Python loops", "difference of an AP"]),
        ("preproc", "--share 0.001", ["COCO's two instance files", "CUB's table", "single positives of 82 x 80"]),
    ],
)
def test_a_benchmark_prints_its_tables(script, arguments, rows):
    done = command(f"benchmarks/{script}.py", "--repeats", "1", *arguments.split())
    assert done.returncode == 0, done.stderr
    assert all(row in done.stdout for row in rows), done.stdout
