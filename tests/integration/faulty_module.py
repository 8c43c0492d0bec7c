"""A module that cannot be imported, for the tests of the error."""

import no_such_helper  # type: ignore[import-not-found]

agent = no_such_helper
