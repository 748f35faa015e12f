"""The toy data of this experiment, drawn on first use in the layouts of the published sets.

Everything follows from a seed. A set is drawn again when its recipe (the code that decides its
content) changes, appears whole or not at all, and says `synthetic: true` in its manifest.

    python qwen_clip_llava_lora/prepare_data.py --toy --dataset medtrinity

Drawn below data/toy in seconds by the scripts' --toy. Reads nothing; no torch.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from qwen_clip_llava_lora import toy_affectnet, toy_captions, toy_medtrinity
from qwen_clip_llava_lora.settings import TOY_SETS, TOY_SHARES
from shared.toy_world import chinese, pictures, questions, sets, shapes
from shared.toy_world.recipe import recipe_hash
from shared.toy_world.sets import ensure_set

SHARED = (shapes, pictures, questions, chinese, sets)


def _recipe(module: ModuleType) -> str:
    return recipe_hash([Path(str(m.__file__)) for m in (*SHARED, module)])


def ensure_prepared(name: str) -> Path:
    """What `prepare_data.py --toy --dataset NAME` writes, made when it is missing; its folder."""
    from qwen_clip_llava_lora.preparing import prepare

    ensure = {
        "cc3m": ensure_cc3m,
        "descriptions": ensure_descriptions,
        "medtrinity": ensure_medtrinity,
        "affectnet": ensure_affectnet,
    }
    root = ensure[name]()
    prepared = root / "prepared"
    if not (prepared / "dataset.json").is_file():
        prepare(name, root, prepared, **TOY_SHARES)
    return prepared


def ensure_cc3m(root: Path = TOY_SETS / "cc3m_595k", redraw: bool = False) -> Path:
    """The toy LLaVA-CC3M-Pretrain-595K, drawn when it is missing or its recipe has changed.

    Raises UserError when the folder can't be written, or holds something that is not a toy set.
    """
    hash_ = _recipe(toy_captions)
    return ensure_set(root, "toy LLaVA-CC3M captions", hash_, toy_captions.write_cc3m, redraw)


def ensure_descriptions(root: Path = TOY_SETS / "descriptions", redraw: bool = False) -> Path:
    """The toy set in the layout of the 1,957 descriptions; as `ensure_cc3m`."""
    hash_ = _recipe(toy_captions)
    return ensure_set(root, "toy descriptions", hash_, toy_captions.write_descriptions, redraw)


def ensure_medtrinity(root: Path = TOY_SETS / "medtrinity", redraw: bool = False) -> Path:
    """The toy CT slices in the layout of MedTrinity-25M's demo part; as `ensure_cc3m`."""
    hash_ = _recipe(toy_medtrinity)
    return ensure_set(root, "toy CT slices", hash_, toy_medtrinity.write_medtrinity, redraw)


def ensure_affectnet(root: Path = TOY_SETS / "affectnet", redraw: bool = False) -> Path:
    """The toy faces in the layout of AffectNet; as `ensure_cc3m`."""
    hash_ = _recipe(toy_affectnet)
    return ensure_set(root, "toy faces", hash_, toy_affectnet.write_affectnet, redraw)
