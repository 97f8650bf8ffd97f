"""Work in a child of this process, so that it leaves no trace in this one."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from optlab.system import errors
from optlab.system.errors import LackError, OptlabError, one_line

_LOOK_S = 0.2  # how often a child sees whether its parent is there


def call(work: Callable[[], Any]) -> Any:
    """Return what `work` returns, as JSON has it.

    Raises:
        OptlabError: `work` has raised it; of the same class.
        LackError: the child was killed.
        ChildProcessError: `work` has raised anything else, whose traceback is on stderr.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    readable, writable = os.pipe()
    parent, child = os.getpid(), os.fork()
    if not child:
        os.close(readable)
        _work(work, writable, parent)
    os.close(writable)
    try:
        with os.fdopen(readable, "rb") as answers:
            content = answers.read()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        raise
    finally:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return _result(content, status)


def _result(content: bytes, status: int) -> Any:
    if not content:
        raise LackError(f"a process that tried params.yaml out was stopped (exit status {status}): is memory short?")
    answer = json.loads(content)
    if "error" in answer:
        kind = getattr(errors, answer["kind"], None)
        raise (kind or ChildProcessError)(answer["error"])
    return answer["result"]


def _work(work: Callable[[], Any], answers: int, parent: int) -> NoReturn:
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    try:
        answer = {"result": work()}
    except OptlabError as error:
        answer = {"kind": type(error).__name__, "error": str(error)}
    except KeyboardInterrupt:
        os._exit(130)
    except BaseException as error:
        traceback.print_exc()
        answer = {"kind": "", "error": f"{type(error).__name__}: {one_line(error)}"}
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        with os.fdopen(answers, "wb") as file:
            file.write(json.dumps(answer).encode())
    finally:
        os._exit(0)


def _follow(parent: int) -> None:
    """End with the parent."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)
