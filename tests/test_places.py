"""Folders as people see them: short names, and never the machine's own paths."""

from app.places import Places, places


def test_folders_are_named_from_what_they_have_in_common() -> None:
    found = places(["/home/me/p/a", "/home/me/p/b/x", "/home/me/p/b"])
    assert found.root == "/home/me/p"
    assert found.names == {"a": "/home/me/p/a", "b": "/home/me/p/b", "b/x": "/home/me/p/b/x"}
    assert found.shown("/home/me/p/a/1.jpg") == "a/1.jpg"
    assert found.shown("/home/me/q/1.jpg") == "1.jpg"
    assert found.shown("upload/1.jpg") == "1.jpg"
    alone = places(["/home/me/p"])
    assert (alone.root, alone.names) == ("/home/me/p", {})
    assert places([]) == places([""]) == Places({}, ".")


def test_folders_between_are_named_too() -> None:
    assert list(places(["/p/a/x", "/p/b/y/z"]).names) == ["a", "a/x", "b", "b/y", "b/y/z"]


def test_uploads_do_not_change_what_the_folders_have_in_common() -> None:
    found = places(["/home/me/p/a", "/home/me/p/b", "upload"])
    assert found.root == "/home/me/p"
    assert found.names == {"a": "/home/me/p/a", "b": "/home/me/p/b", "upload": "upload"}
