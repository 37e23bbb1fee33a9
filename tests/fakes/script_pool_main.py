"""`script-pool` with the engine of the tests."""

from script_pool.__main__ import main

if __name__ == "__main__":
    main("tests.fakes.script_engine:FakeEngine")
