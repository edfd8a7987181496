"""Perfdata labels for names that somebody else chose."""

from __future__ import annotations

from check_pgsock.labels import label_of


def test_labels_of_databases() -> None:
    assert label_of("app_2") == "app_2"
    assert label_of("thirteen_char") == "thirteen_char"
    names = ["App", "app", "Anwendung des Betriebs", "anwendung_des_betriebs", "ä", "a=b'c|d", "'"]
    labels = [label_of(name) for name in names]
    assert len(set(labels)) == len(names)
    assert all(len(label) <= 13 and label.replace("_", "a").isalnum() for label in labels)
    assert all(label.isascii() and label == label.lower() for label in labels)
