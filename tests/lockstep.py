"""Two calls at once, instruction by instruction in turns, so that a lock that is missing is missed every time."""

import sys
import threading

_PATIENCE = 0.05  # seconds until a call that does not go on counts as waiting for a lock
_LIMIT = 30.0  # seconds; no test waits for ever


class _Turns:
    """Hands the turn from one call to the other; a call that waits for a lock is passed over."""

    def __init__(self, ahead):
        self._changed = threading.Condition()
        self._turn, self._steps, self._ahead = 0, 0, ahead
        self._waiting, self._over = [False, False], [False, False]

    def begin(self, me):
        if me == 1:
            with self._changed:
                self._changed.wait_for(lambda: self._turn == 1 or self._over[0], _LIMIT)

    def step(self, me):
        with self._changed:
            self._waiting[me] = False
            if me == 0 and self._steps < self._ahead:
                self._steps += 1
                return
            self._turn = 1 - me
            self._changed.notify_all()
            free = lambda: self._turn == me or self._over[1 - me]  # noqa: E731
            if not self._waiting[1 - me] and not self._changed.wait_for(free, _PATIENCE):
                self._waiting[1 - me] = True
            self._turn = me

    def end(self, me):
        with self._changed:
            self._over[me], self._turn = True, 1 - me
            self._changed.notify_all()


def lockstep(first, second, module, *, ahead=0):
    """Run two calls in threads of their own, and switch between them after every instruction of a module.

    Args:
        first: a function without arguments; it is some instructions ahead.
        second: another.
        module: whose code the calls run through in turns.
        ahead: how many instructions.

    Returns:
        What each has returned, or the exception that it has raised.
    """
    turns, results = _Turns(ahead), [None, None]

    def run(me, call):
        def trace(frame, event, argument):
            if frame.f_code.co_filename != module.__file__:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                turns.step(me)
            return trace

        turns.begin(me)
        sys.settrace(trace)
        try:
            results[me] = call()
        except BaseException as error:
            results[me] = error
        finally:
            sys.settrace(None)
            turns.end(me)

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate((first, second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_LIMIT)
    assert not any(thread.is_alive() for thread in threads), "the calls wait for each other"
    return results
