"""How long the demo ledger's tokens live."""

from attachfs.demo.tokens import Tokens


def test_an_issued_token_expires_and_a_static_one_does_not() -> None:
    now = [100.0]
    tokens = Tokens(60, ["fixed"], clock=lambda: now[0])
    issued = tokens.issue()
    assert tokens.accepts(f"Bearer {issued}")
    now[0] += 59.9
    assert tokens.accepts(f"bearer {issued}")
    now[0] += 0.1
    assert not tokens.accepts(f"Bearer {issued}")
    assert tokens.accepts("Bearer fixed")
    for wrong in ("", "Bearer", "Bearer ", "Basic fixed", f"Bearer  {issued}"):
        assert not tokens.accepts(wrong)
