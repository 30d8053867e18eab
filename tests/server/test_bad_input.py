"""Bad input under load: each gets its 4xx, and the others' answers stay word for word the same."""

import bad_input


def test_bad_input_disturbs_nobody(server):
    bad_input.assert_nobody_is_disturbed(server, lines=12, disconnects=60)
