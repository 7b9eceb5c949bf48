"""A shop whose shoppers use other words than its titles, so that nothing but training can bring the two together."""

from __future__ import annotations

from pathlib import Path

from models.catalogue import CatalogueItem
from models.examples.records import TrainingExample
from models.towers.dual_tower import TowerSettings

KINDS = {"kettle": "wodgup", "lamp": "strell", "rug": "quibbo", "chair": "fanzik", "knife": "ombrat", "desk": "yulvex"}
LOOKS = {"red": "crimvo", "green": "vertig", "blue": "azzum", "black": "nokturn", "white": "albit", "grey": "cendro"}
STUFFS = {"glass": "vitrux", "steel": "ferrun", "oak": "querg", "wool": "lanip", "clay": "argiv"}

SMALL = TowerSettings(
    dimension=32, rows=1024, hidden=32, epochs=25, batch_size=96, learning_rate=5e-3, held_out=0.2, feature_dropout=0.1
)


def planted_items() -> list[CatalogueItem]:
    """180 items: every kind in every look and stuff."""
    return [
        CatalogueItem(id=f"{kind}-{look}-{stuff}", title=f"{look} {kind}", type=kind, description=f"made of {stuff}")
        for kind in KINDS
        for look in LOOKS
        for stuff in STUFFS
    ]


def planted_pairs() -> list[TrainingExample]:
    """Two queries an item."""
    pairs = []
    for item in planted_items():
        kind, look, stuff = item.id.split("-")
        pairs.append(TrainingExample(query=f"{LOOKS[look]} {KINDS[kind]} {STUFFS[stuff]}", item=item.id))
        pairs.append(TrainingExample(query=f"{KINDS[kind]} {STUFFS[stuff]} {LOOKS[look]}", item=item.id))
    return pairs


def write_items(path: Path, items: list[CatalogueItem]) -> Path:
    """Items as JSON lines, without embeddings."""
    import msgspec

    path.write_bytes(b"".join(msgspec.json.encode(item) + b"\n" for item in items))
    return path
