"""Overrides of the command for the smallest training."""

SMALL = (
    "name=run", "eval.every=0", "eval.exact_match.path=null", "eval.samples=[]", "seq_length=128", "data.num_workers=1",
    "train.num_threads=1", "train.global_batch_size=2", "train.micro_batch_size=2", "device=cpu",
    "model.architecture.num_hidden_layers=1", "model.architecture.hidden_size=32",
    "model.architecture.intermediate_size=32", "export.auto=false",
)  # fmt: skip
