"""What becomes of a verb: its document as tables or JSON, one line for a refusal, the exit code.

0 done or met, 1 not met, 2 refused, 3 a bug, 130 interrupted (CONTRACTS, "Verdicts").
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from paredown.errors import InputError, ParedownError

REFUSED, BUG, INTERRUPTED = 2, 3, 130


def cache_folder() -> Path:
    """Where paredown keeps what can be made again: ``$PAREDOWN_CACHE`` or ``~/.cache/paredown``."""
    return Path(os.environ.get("PAREDOWN_CACHE") or Path.home() / ".cache" / "paredown")


def run(work: Callable[[], object], *, json: str | None) -> int:
    """Do a verb's work, show its document, and return the exit code.

    With ``json`` the document, or the error, is written there as JSON; with ``-`` standard output
    holds nothing else, whatever the user's model prints.
    """
    with only_stderr(json == "-") as out:
        try:
            doc = work()
            _emit(doc, json, out)
            return code_of(doc)
        except KeyboardInterrupt:
            return fail("KeyboardInterrupt", "interrupted", INTERRUPTED, json, out)
        except ParedownError as e:
            return fail(type(e).__name__, one_line(str(e)), e.exit_code, json, out)
        except BrokenPipeError:
            # The reader of our output went away (`pare techniques | head`): not an error of ours.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 0
        except Exception as e:
            return fail(type(e).__name__, _bug(e), BUG, json, out)


def code_of(doc: object) -> int:
    """The exit code of a finished verb, by its document."""
    from paredown.result import EXIT_CODES, CheckDoc, DownDoc, MemoryPlanDoc

    if isinstance(doc, DownDoc):
        return INTERRUPTED if doc.interrupted else EXIT_CODES[doc.verdict]
    if isinstance(doc, CheckDoc):
        return 0 if doc.met else 1
    if isinstance(doc, MemoryPlanDoc):
        return 1 if doc.certificate == "no room" else 0
    return 0


def fail(kind: str, message: str, code: int, json: str | None, out: IO[str]) -> int:
    """Say why on standard error in one line, write the error document where JSON was asked for."""
    print(f"pare: error: {message}" if code != INTERRUPTED else f"pare: {message}", file=sys.stderr)
    if json is not None:
        from paredown.result import ErrorBody, ErrorDoc

        text = ErrorDoc(error=ErrorBody(type=kind, message=message, exit_code=code)).to_json()
        try:
            _write(text, json, out)
        except ParedownError as e:
            print(f"pare: error: {e}", file=sys.stderr)
    return code


def one_line(text: str) -> str:
    """A message with its line breaks taken out."""
    return " ".join(text.split())


@contextmanager
def only_stderr(active: bool) -> Generator[IO[str]]:
    """Send whatever is printed, child processes and C libraries included, to standard error.

    Yields the real standard output. Inactive, it yields standard output and changes nothing.
    """
    if not active:
        yield sys.stdout
        return
    sys.stdout.flush()
    real, before = os.dup(1), sys.stdout
    out = os.fdopen(real, "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        yield out
    finally:
        sys.stdout = before
        out.flush()
        os.dup2(real, 1)
        out.close()


def _emit(doc: object, json: str | None, out: IO[str]) -> None:
    from paredown.result import Document

    if not isinstance(doc, Document):
        raise TypeError(f"a verb returned {type(doc).__name__}, not a document")
    if json is not None:
        _write(doc.to_json(), json, out)
    if json != "-":
        from paredown.report import terminal

        terminal.show(doc)


def _write(text: str, where: str, out: IO[str]) -> None:
    if where == "-":
        out.write(text + "\n")
        out.flush()
        return
    path = Path(where)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as e:
        raise InputError(f"--json {where}: cannot be written: {e.strerror}") from None


def _bug(e: Exception) -> str:
    """Keep the traceback in a log and say where it is."""
    text = "".join(traceback.format_exception(e))
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    try:
        folder = cache_folder() / "log"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"pare-{stamp}-{os.getpid()}.log"
        path.write_text(f"pare {' '.join(sys.argv[1:])}\n\n{text}", encoding="utf-8")
        where = f"the log is {path}"
    except OSError:
        print(text, file=sys.stderr)
        where = "no log could be written, so it stands above"
    said = one_line(str(e))[:300]
    return f"this is a bug in paredown: {type(e).__name__}: {said}; {where}"
