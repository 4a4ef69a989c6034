"""The book of the nodes: who takes part in a round, what ends one, and what follows. No ranks are started here."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from alexlab import members, rounds
from alexlab.errors import ConfigError, DataError, RankError
from alexlab.fingerprint import check_equal
from alexlab.first_node import First
from alexlab.other_node import Other
from alexlab.rounds import JOINED, LOST, Place, Report
from alexlab.signals import Stopped
from alexlab.tasks.train import check
from conftest import TINY, plain

LIMITS = {"num_nodes": 2, "min_nodes": 1, "max_restarts": 0, "silence_s": 0.6, "join_s": 0.2, "timeout_s": 3.0}
KILLED = RankError("rank 1 (process 7) was ended by SIGKILL")


def judge(reports: Sequence[Report]) -> RankError:
    return KILLED


class Meeting:
    """A first node and others on this machine.

    Args:
        limits: what differs from LIMITS.
    """

    def __init__(self, **limits: Any) -> None:
        first = members.gather(f"127.0.0.1:{free_port()}", **(LIMITS | limits))
        assert isinstance(first, First)
        self.first = first
        self.others: list[Other] = []
        self.places: list[Any] = []

    def join(self) -> Other:
        found = members.gather(f"127.0.0.1:{self.first.port}", **LIMITS)
        assert isinstance(found, Other)
        self.others.append(found)
        return found

    def close(self) -> None:
        for other in self.others:
            other.leave()
        self.first.leave()
        for place in self.places:
            if isinstance(place, Place) and place.listener is not None:
                place.listener.close()

    def round(self, *reports: Report | None, others: Sequence[Other]) -> list[Place | BaseException]:
        """What the next round is for the first node and for others, each asking in a thread of its own."""
        found = at_once(
            *(
                partial(node.next, report, judge)
                for node, report in zip([self.first, *others], reports or [None] * 9, strict=False)
            )
        )
        self.places += found
        return found


@pytest.fixture
def meet() -> Iterator[Callable[..., Meeting]]:
    made: list[Meeting] = []

    def make(**limits: Any) -> Meeting:
        made.append(Meeting(**limits))
        return made[-1]

    yield make
    for meeting in made:
        meeting.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What the calls give, or raise, each in a thread."""
    found: list[Any] = [None] * len(calls)

    def call(index: int) -> None:
        try:
            found[index] = calls[index]()
        except BaseException as error:
            found[index] = error

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def eventually(ask: Callable[[], Any], wanted: Any, within_s: float = 5.0) -> None:
    deadline_s = time.monotonic() + within_s
    while ask() != wanted:
        assert time.monotonic() < deadline_s, ask()
        time.sleep(0.02)


def test_the_first_is_the_one_that_has_the_address(meet: Callable[..., Meeting]) -> None:
    meeting = meet()
    other = meeting.join()
    mine, its = meeting.round(others=[other])
    assert (mine.attempt, mine.number, mine.count) == (0, 0, 2)
    assert (its.attempt, its.number, its.count, its.port) == (0, 1, 2, mine.port)
    assert meeting.first.agreed("folder", lambda: {"name": "x"}) == {"name": "x"}
    assert other.agreed("folder", lambda: {"name": "its own"}) == {"name": "x"}
    assert meeting.first.over() is other.over() is None


@pytest.mark.parametrize("agreed", [True, False])
def test_one_that_comes_later_joins(meet: Callable[..., Meeting], agreed: bool) -> None:
    """The ranks are told to stop; those that have not begun to train cannot agree on a step, and end at once."""
    meeting = meet()
    (alone,) = meeting.round(others=[])
    assert (alone.count, alone.attempt) == (1, 0)
    other = meeting.join()
    assert meeting.first.over() is None  # it is not ready

    report = Report(0, stopped=15) if agreed else Report(0, words={"rank0_0.json": "{}"})

    def first() -> Place:
        eventually(meeting.first.over, JOINED)
        return meeting.first.next(report, lambda reports: Stopped(15))

    mine, its = at_once(first, lambda: other.next(None, judge))
    meeting.places.append(mine)
    assert (mine.count, mine.attempt, its.number) == (2, 1, 1)
    assert meeting.first.causes == ["a node has come"]


@pytest.mark.parametrize("how", ["ended", "silent"])
def test_a_lost_node_is_named_and_the_rest_goes_on(
    meet: Callable[..., Meeting], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = meet()
    other = meeting.join()
    meeting.round(others=[other])
    if how == "ended":
        other.connection.shutdown(socket.SHUT_RDWR)
    else:
        other.lock.acquire()  # it cannot say anything
    eventually(meeting.first.over, LOST)
    (mine,) = meeting.round(Report(0, words={}), others=[])
    assert (mine.count, mine.attempt) == (1, 1)
    reason = "its process has ended" if how == "ended" else "no word for 0.6 s"
    assert f"was lost: {reason}" in meeting.first.causes[0]
    if how == "silent":
        other.lock.release()


def test_a_lost_node_comes_back_by_itself(meet: Callable[..., Meeting]) -> None:
    meeting = meet()
    other = meeting.join()
    meeting.round(others=[other])
    other.connection.shutdown(socket.SHUT_RDWR)
    eventually(meeting.first.over, LOST)
    eventually(other.over, LOST)

    def first() -> Place:
        place = meeting.first.next(Report(0), judge)
        meeting.places.append(place)
        assert (place.count, place.attempt) == (1, 1)
        eventually(meeting.first.over, JOINED)
        return meeting.first.next(Report(1, stopped=15), judge)

    def come_back() -> Place:
        eventually(lambda: meeting.first.attempt, 1)
        return other.next(Report(0), judge)

    found = at_once(first, come_back)
    meeting.places += found
    assert [(place.count, place.attempt, place.number) for place in found] == [(2, 2, 0), (2, 2, 1)]


def test_too_few_nodes_end_the_run_for_all(meet: Callable[..., Meeting]) -> None:
    meeting = meet(min_nodes=2)
    other = meeting.join()
    meeting.round(others=[other])
    other.connection.shutdown(socket.SHUT_RDWR)
    eventually(meeting.first.over, LOST)
    (error,) = meeting.round(Report(0), others=[])
    assert isinstance(error, RankError)
    assert "a round needs 2 nodes; there are 1" in str(error)


def test_nobody_comes(meet: Callable[..., Meeting]) -> None:
    meeting = meet(min_nodes=2, timeout_s=0.5)
    (error,) = meeting.round(others=[])
    assert isinstance(error, RankError)
    with pytest.raises(
        RankError, match=r"the first node must answer at elastic\.rendezvous=127\.0\.0\.1:\d+; it has not"
    ):
        Other(f"127.0.0.1:{free_port()}", 0.1)


def test_a_lost_rank_is_started_again_as_often_as_allowed(meet: Callable[..., Meeting]) -> None:
    meeting = meet(max_restarts=1)
    other = meeting.join()
    meeting.round(others=[other])
    mine, its = meeting.round(Report(0), Report(0, words={"rank1_0.json": "{}"}), others=[other])
    assert (mine.attempt, its.attempt) == (1, 1)
    mine, its = at_once(
        lambda: ending(meeting.first, lambda: meeting.first.next(Report(1), judge)),
        lambda: ending(other, lambda: other.next(Report(1), judge)),
    )
    assert str(mine) == str(its) == str(KILLED)


def ending(node: First | Other, work: Callable[[], Any]) -> Any:
    """Leaves with the error, as a run does."""
    try:
        return work()
    except (RankError, DataError, Stopped) as error:
        node.leave(error)
        raise


@pytest.mark.parametrize("min_nodes", [1, 2])
def test_a_node_that_heard_a_signal_leaves(meet: Callable[..., Meeting], min_nodes: int) -> None:
    """All have saved and stopped by then."""
    meeting = meet(min_nodes=min_nodes)
    other = meeting.join()
    meeting.round(others=[other])
    other.leave(Stopped(15, agreed=True))
    (mine,) = meeting.round(Report(0, stopped=15), others=[])
    if min_nodes == 1:
        assert mine.count == 1
        assert meeting.first.causes == ["a node was stopped by SIGTERM and has left"]
    else:
        assert isinstance(mine, Stopped)


def test_what_ends_the_first_ends_the_others(meet: Callable[..., Meeting]) -> None:
    meeting = meet()
    other = meeting.join()
    meeting.round(others=[other])
    _, error = at_once(
        lambda: meeting.first.leave(DataError("cannot read x.png")),
        lambda: ending(other, lambda: eventually(other.over, LOST) or other.next(Report(0), judge)),
    )
    assert isinstance(error, DataError)
    assert str(error) == "cannot read x.png"


def test_only_numbers_that_fit_take_part(meet: Callable[..., Meeting]) -> None:
    """Of four nodes that are allowed three are there, and the batch can be shared out to two or four."""
    meeting = meet(num_nodes=4, min_nodes=2)
    meeting.first.fits = lambda count: count in (2, 4)
    others = [meeting.join(), meeting.join()]
    places: list[Any] = []
    thread = threading.Thread(target=lambda: places.extend(meeting.round(others=others)))
    thread.start()
    eventually(lambda: meeting.first.attempt, 0)
    assert sum(node.taking_part for node in meeting.first.nodes.values()) == 2
    assert meeting.first.over() is None
    meeting.first.leave(DataError("enough"))
    thread.join(10)
    assert isinstance(places[2], DataError)


def test_nonsense_is_no_member(meet: Callable[..., Meeting]) -> None:
    meeting = meet()
    for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b'{"ask": "place"}\n', b"[]\n", b'{"ask": "join"}\n'):
        with socket.create_connection(("127.0.0.1", meeting.first.port)) as connection:
            connection.sendall(nonsense)
            assert connection.recv(1) == b""
    assert len(meeting.first.nodes) == 1


@pytest.mark.parametrize("endpoint", ["here", "host:", ":80", "host:0", "host:70000", "host:x"])
def test_words_for_an_endpoint(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"elastic\.rendezvous must be HOST:PORT"):
        rounds.parsed(endpoint)


def test_words_for_numbers_of_nodes(images: Path) -> None:
    node = {"rendezvous": "127.0.0.1:1", "min_nodes": 3}
    with pytest.raises(ConfigError, match=r"elastic\.min_nodes must be from 1 to trainer\.num_nodes"):
        members.join_nodes({"trainer": {"num_nodes": 2}, "elastic": node})
    with pytest.raises(ConfigError, match=r"trainer\.num_nodes=2 needs elastic\.rendezvous=HOST:PORT"):
        check(plain(*TINY, f"data.root={images}", "trainer.num_nodes=2"))


def test_what_differs_is_told() -> None:
    first = {"config": {"a": 1, "b": 2}, "data": {"images of train": 3}, "versions": {"torch": "2.15"}}
    check_equal(first, first, name="x")
    for what, key, value in (("config", "b", 5), ("data", "images of train", 4), ("versions", "torch", "2.11")):
        own = {**first, what: {**first[what], key: value}}
        with pytest.raises(
            ConfigError, match=rf"node x is refused, its {what} must be the first node's; {key}: {value} "
        ):
            check_equal(first, own, name="x")


def test_the_interface_of_an_address() -> None:
    assert members.interface("127.0.0.1") == "lo"
    with pytest.raises(RankError, match="no network interface"):
        members.interface("203.0.113.7")
