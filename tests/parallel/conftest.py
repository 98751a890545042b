import pytest
from support.training import Case, Outcome, train

from sft_hydra.planning.layout import Layout


@pytest.fixture(scope="session")
def one_process():
    """What a case does on one process; computed once."""
    known: dict[str, Outcome] = {}

    def outcome(case: Case) -> Outcome:
        if repr(case) not in known:
            known[repr(case)] = train(case, Layout())
        return known[repr(case)]

    return outcome
