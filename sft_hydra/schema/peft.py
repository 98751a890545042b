"""The `peft` section: low-rank adapters."""

from dataclasses import dataclass, field

from sft_hydra.schema.ranges import number


@dataclass(kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021), in the terms of the peft library."""

    path: str | None = None
    """Folder of an adapter in PEFT's format to start from, written by the peft library or by sft_hydra; implies
    `peft=lora`. Rank, alpha, scaling and targets are those of the adapter; with `model.path=null` so is the base model."""
    dim: int = number(32, 1, 100_000)
    """Rank."""
    alpha: float = number(32.0, 0, 1e6, above=True)
    """Scale: the update is `alpha / dim * B @ A`."""
    dropout: float = number(0.0, 0, 1, below=True)
    dropout_position: str = "pre"
    """`pre` (on the input) or `post` (on the update)."""
    target_modules: list[str] | None = None
    """Module names, wildcards allowed (`*.q_proj`). null or []: the family's linear layers. `linear_qkv`, `linear_proj`,
    `linear_fc1`, `linear_fc2`, `in_proj`, `out_proj` are accepted as aliases."""
    exclude_modules: list[str] | None = None
    """Adapt every linear layer except these. Excludes `target_modules`."""
    match_all_linear: bool = False
    """Adapt every linear layer except the head; overrides `target_modules`."""
    a_init: str = "xavier"
    """`xavier`, `kaiming` (alias `uniform`) or `normal`."""
    quantize_base: str | None = None
    """What the frozen weights of linear layers are kept in: `nf4` (4 bits, double quantization; `peft=qlora` sets it),
    `int8` (8 bits, a scale for each row), null: the precision that is computed in. Without tensor parallelism."""
    init_lora_weights: str | None = None
    """As in PEFT: `gaussian` (the same as `a_init=normal`), or A and B initialized from the weight: `pissa`, `pissa_niter_<n>`
    (faster: a randomized decomposition with n iterations), `olora`. null: A by `a_init`, B zero."""
    modules_to_save: list[str] = field(default_factory=list)
    """Trained in full beside the adapters: `embed_tokens`, `lm_head`. Where the head is the embedding, either means both."""
    trainable_new_tokens: bool = False
    """Train the rows of `tokenizer.add_tokens` and `add_special_tokens` in embedding and head, and no other row of them."""
    use_dora: bool = False
    """DoRA: also train the length of each row of the adapted weights. Not for routed experts."""
    rank_stabilized: bool = False
    """Scale by `alpha / sqrt(dim)`."""
    rank_pattern: dict[str, int] = number({}, 1, 100_000)
    """Ranks of layers that differ from `dim`: regular expression of the end of the layer name -> rank, as in PEFT."""
    alpha_pattern: dict[str, float] = number({}, 0, 1e6, above=True)
    """The same for `alpha`."""
