"""Which files of a folder count as images."""

from pathlib import Path

from datasets.walk import describe_left_out, find_images


def test_hidden_folders_thumbnails_and_loops_are_left_out_and_links_followed(tmp_path):
    kept = ["cat/1.jpg", "cat/2.PNG", "dog/deep/3.jpeg", "linked/4.jpg"]
    hidden = ["cat/.Trash/a.jpg", ".git/b.jpg", "cat/._1.jpg", "cat/Thumbs.db", "dog/.thumbnails/deep/c.jpg"]
    ignored = ["@eaDir/cat/d.jpg", "cat/@eaDir/1.jpg/e.jpg", "__MACOSX/f.jpg"]
    others = ["cat/i.HEIC", "cat/j", "cat/k.jpg_large", "cat/l.mpg"]
    root = tmp_path / "photos"
    for name in [*kept[:3], *hidden, *ignored, *others]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/4.jpg").touch()
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "twice").symlink_to(tmp_path / "elsewhere")
    (root / "dog/up").symlink_to(root)
    (root / "cat/gone.jpg").symlink_to(tmp_path / "none")
    images, left_out = find_images(root)
    assert [path.relative_to(root) for path in images] == [Path(name) for name in kept]
    line = describe_left_out(left_out, root)
    assert "3 folders of thumbnails" in line and "2 links to a folder that was read already" in line
    assert "1 .HEIC (cat/i.HEIC; convert them to JPEG, or pip install pillow-heif)" in line
    assert "without an ending (cat/j)" in line and "broken links or pipes (cat/gone.jpg)" in line and ".mpg" in line
    assert describe_left_out({}, root) == ""
