"""Two calls at once, instruction by instruction in turns, so that a lock that is missing is missed every time."""

import sys
import threading

_PATIENCE = 0.05  # seconds until a call that does not go on counts as waiting for a lock
_LIMIT = 30.0  # seconds; no test waits for ever


class _Turns:
    """Hands the turn from one call to the other; a call that waits for a lock is passed over."""

    def __init__(self, ahead, whole):
        self._changed = threading.Condition()
        self._turn, self._ahead, self._whole = 0, ahead, whole
        self._steps, self._waiting, self._over = [0, 0], [False, False], [False, False]

    def begin(self, me):
        if me == 1:
            with self._changed:
                self._changed.wait_for(lambda: self._turn == 1 or self._over[0], _LIMIT)

    def step(self, me):
        with self._changed:
            self._waiting[me] = False
            self._steps[me] += 1
            if self._steps[0] > self._ahead and not (self._whole and (me == 1 or self._steps[0] > self._ahead + 1)):
                self._hand_over(me)

    def _hand_over(self, me):
        self._turn = 1 - me
        self._changed.notify_all()
        while not (self._turn == me or self._over[1 - me] or self._waiting[1 - me]):
            before = self._steps[1 - me]
            self._changed.wait(_PATIENCE)
            self._waiting[1 - me] = self._turn != me and self._steps[1 - me] == before
        self._turn = me

    def end(self, me):
        with self._changed:
            self._over[me], self._turn = True, 1 - me
            self._changed.notify_all()


def lockstep(first, second, module, *, ahead=0, whole=False):
    """Run two calls in threads of their own, and switch between them after every instruction of a module.

    Args:
        first: a function without arguments; it is some instructions ahead.
        second: another.
        module: whose code the calls run through in turns.
        ahead: how many instructions.
        whole: let the second then run to its end before the first goes on.

    Returns:
        What each has returned, or the exception that it has raised.
    """
    turns, results = _Turns(ahead, whole), [None, None]

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
