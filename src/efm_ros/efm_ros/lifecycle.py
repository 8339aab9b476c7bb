"""The lifecycle node that all nodes of EFM are, and the `main` that runs one.

A node fills in four hooks: `acquire` (configure: load or raise), `start` (activate), `stop` (deactivate) and
`release` (one teardown that tolerates half-built state). The base turns their errors into refused transitions
with clear words in the log, starts itself when `autostart` says so, publishes /diagnostics once a second, and
makes every end of the process, in order or not, go through stop and release: what `stop` sends last (the
hold-still command) is the last thing that the node sends.
Left out: what a node does between start and stop, and threads of its own; `release` has to end those.
"""

from __future__ import annotations

import dataclasses
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any, ClassVar

import rclpy
import rclpy.logging
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions

from efm_core.errors import (
    EXIT_REFUSED,
    BadRequest,
    BundleInvalid,
    BundleTampered,
    BundleUnusable,
    EfmError,
    EmbodimentInvalid,
    EmbodimentMismatch,
)
from efm_ros.executors import SingleThreadedExecutor, ThreadPoolExecutor
from efm_ros.names import robot_label
from efm_ros.parameters import declare, param

OK, WARN, ERROR, STALE = (
    DiagnosticStatus.OK,
    DiagnosticStatus.WARN,
    DiagnosticStatus.ERROR,
    DiagnosticStatus.STALE,
)
DIAGNOSTICS_PERIOD_S = 1.0
LONGEST_WAIT_S = 1.0  # At the end, for callbacks that still run.
EXIT_STOPPED, EXIT_FAILED = 0, 1
# Of parameters and what they name, when a node starts.
REFUSALS = (
    BadRequest,
    EmbodimentInvalid,
    EmbodimentMismatch,
    BundleInvalid,
    BundleTampered,
    BundleUnusable,
)


@dataclasses.dataclass(frozen=True)
class NodeParameters:
    """Parameters of every node; a node's own parameter dataclass inherits from it."""

    autostart: bool = param(
        True,
        description="Configure and activate by itself. False: a lifecycle manager does it.",
    )


class EfmLifecycleNode(LifecycleNode):
    """A lifecycle node with parameters, diagnostics and one teardown.

    Subclasses set `Parameters` and override `acquire`, `start`, `stop`, `release`, and where wanted
    `parameters_changed` and `update_diagnostics`. All of them run in the executor's thread. `fail` may be
    called from any thread.

    Attributes:
        parameters: The values that hold now.
        ending: Set as soon as the process is to end; whoever waits inside a callback waits for this as well.
        failure: What went wrong; the process ends with code 1.
        refused: Whether what went wrong are its parameters; the process ends with code 2.
        diagnostics: Subcomponent -> level, message, figures; see `diagnose`.
    """

    Parameters: ClassVar[type[NodeParameters]] = NodeParameters

    def __init__(self, name: str, **options: Any) -> None:
        """Declares the parameters; nothing else is acquired before configure.

        Args:
            name: Default name of the node.
            options: For rclpy's LifecycleNode: namespace, parameter_overrides, context, ...

        Raises:
            BadRequest: A parameter is unknown, of the wrong type or out of range.
        """
        super().__init__(name, **options)
        self.failure: BaseException | None = None
        self.refused = False
        self.ending = threading.Event()
        self.diagnostics: dict[str, tuple[bytes, str, Mapping[str, object]]] = {}
        self._hardware: dict[str, str] = {}
        self._refusal: Exception | None = None
        self._failed = self.create_guard_condition(lambda: None)
        try:
            self.parameters = declare(self, self.Parameters, self._take_parameters)
        except BaseException:
            self.destroy_node()
            raise
        # Steady, since simulated time may stand still while nodes start and robots rest.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._diagnostics_timer = self.create_timer(
            DIAGNOSTICS_PERIOD_S, self._publish_diagnostics, clock=steady
        )
        self._autostart_timer = self.create_timer(0.0, self._autostart, clock=steady)

    # Hooks

    def acquire(self) -> None:
        """Configure: takes everything that is needed, or raises. Nothing moves yet."""

    def start(self) -> None:
        """Activate: begins to work, or raises."""

    def stop(self) -> None:
        """Deactivate: ends the work in order; the hold-still command is the last one sent.

        Called at every end, also of a node that never started and of one that stopped already.
        """

    def release(self) -> None:
        """Gives everything back, also what `acquire` took before it raised. Called any number of times."""

    def parameters_changed(self, names: Collection[str]) -> None:
        """Told which settable parameters were set; `self.parameters` is the new instance already."""

    def update_diagnostics(self) -> None:
        """Called before every publication of diagnostics, to call `diagnose` with the newest figures."""

    # For subclasses

    @property
    def is_active(self) -> bool:
        """True between activation and deactivation."""
        return self._state_machine.current_state[1] == "active"

    def diagnose(
        self, name: str, level: bytes, message: str, robot: str | None = None, **values: object
    ) -> None:
        """Sets the state of a subcomponent, published at 1 Hz until the next call, from any thread.

        Args:
            name: Subcomponent; published as '<node>: <name>'.
            level: OK, WARN, ERROR or STALE of this module.
            message: For people.
            robot: Entry of the node's `robots` that it is about. None: the node itself.
            values: Figures for people and plots.
        """
        self._hardware[name] = robot_label(self, robot or "")
        self.diagnostics[name] = (level, message, values)

    def fail(self, error: BaseException) -> None:
        """Ends the node from any thread: `run_node` stops it safely and exits with code 1."""
        if self.failure is None:
            self.failure = error
            self._log_error("fault", error)
        self._failed.trigger()

    def stop_and_release(self) -> None:
        """Brings the node to a safe end from any state; an error in `stop` does not prevent `release`."""
        for name, step in (("stop", self.stop), ("release", self.release)):
            try:
                step()
            except Exception as error:  # noqa: BLE001 - a safe end comes before everything
                self._log_error(name, error)

    # Transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Runs `acquire`; on an error gives back what was taken and stays unconfigured."""
        return self._attempt("configure", self.acquire, self.release, state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Runs `start`; on an error stops and stays inactive."""
        return self._attempt("activate", self.start, self.stop, state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Runs `stop`."""
        return self._attempt("deactivate", self.stop, None, state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Runs `release`."""
        return self._attempt("clean up", self.release, None, state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Runs `stop` and `release`, whatever the state was."""
        self.stop_and_release()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stops and gives back everything after a transition that failed half-way; unconfigured again."""
        self.stop_and_release()
        return TransitionCallbackReturn.SUCCESS

    def _attempt(
        self, name: str, step: Callable[[], None], undo: Callable[[], None] | None, state: LifecycleState
    ) -> TransitionCallbackReturn:
        """Runs a transition's step. With a way back an error refuses it, without one `on_error` cleans up."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - rclpy would swallow it without a word
            self._log_error(name, error)
            self._refusal = error
            if undo is None:
                return TransitionCallbackReturn.ERROR
            try:
                undo()
            except Exception as second:  # noqa: BLE001 - the same
                self._log_error(f"undo {name}", second)
                return TransitionCallbackReturn.ERROR
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    def _autostart(self) -> None:
        self.destroy_timer(self._autostart_timer)
        if not self.parameters.autostart or self._state_machine.current_state[1] != "unconfigured":
            return
        done = TransitionCallbackReturn.SUCCESS
        if self.trigger_configure() != done or self.trigger_activate() != done:
            # Nobody would try again: with autostart there is no lifecycle manager.
            self.failure = self._refusal or RuntimeError("a transition was refused; see the log")
            self.refused = isinstance(self.failure, REFUSALS)
            self._failed.trigger()

    # Parameters, diagnostics, errors

    def _take_parameters(self, parameters: NodeParameters, names: Collection[str]) -> None:
        self.parameters = parameters
        self.parameters_changed(names)

    def _publish_diagnostics(self) -> None:
        self.update_diagnostics()
        label = self._state_machine.current_state[1]
        self.diagnose("lifecycle", OK if label == "active" else WARN, label)
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        states = list(self.diagnostics.items())  # A copy at once: other threads may add to it.
        for name, (level, text, values) in sorted(states):
            status = DiagnosticStatus(level=level, name=f"{self.get_name()}: {name}", message=text)
            status.hardware_id = self._hardware.get(name, robot_label(self, ""))
            status.values = [KeyValue(key=key, value=_text(value)) for key, value in values.items()]
            message.status.append(status)
        self._diagnostics_publisher.publish(message)

    def _log_error(self, what: str, error: BaseException) -> None:
        """Errors that EFM raises on purpose speak for themselves; others come with their traceback."""
        if isinstance(error, EfmError):
            self.get_logger().error(f"{what}: {error}")
        else:
            trace = "".join(traceback.format_exception(error))
            self.get_logger().error(f"{what}: {type(error).__name__}: {error}\n{trace}")


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def run_node(
    factory: Callable[[], EfmLifecycleNode], args: Sequence[str] | None = None, threads: int = 1
) -> int:
    """Runs one node until SIGINT, SIGTERM, a lifecycle shutdown or a fault: the whole `main` of a node.

    Callbacks run in this thread (`threads` = 1) or in a pool. At the end no callback runs any more when
    `stop` is called, so that its hold-still command is the last one; the middleware is shut down after that.
    To be called from the process's main thread, which gets the signals.

    Args:
        factory: Makes the node; called after rclpy.init.
        args: Command line; None: sys.argv.
        threads: Callbacks that may run at once.

    Returns:
        Exit code: 0 after a signal or a lifecycle shutdown, 1 after an error, 2 where the command line or a
        parameter was refused. The error is in the log.
    """
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:  # noqa: BLE001 - a bad command line or YAML file has no class of its own
        print(f"the node did not start: {error}", file=sys.stderr)
        return EXIT_REFUSED
    with _StopSignals() as signals:
        try:
            try:
                node = factory()
            except Exception as error:  # noqa: BLE001 - whatever it is, it belongs into the log
                text = str(error) if isinstance(error, EfmError) else traceback.format_exc()
                rclpy.logging.get_logger("efm").fatal(f"the node did not start: {text}")
                return _exit_code(error, isinstance(error, REFUSALS))
            try:
                _spin(node, threads, signals)
            finally:
                node.stop_and_release()
                node.destroy_node()
            return _exit_code(node.failure, node.refused)
        finally:
            rclpy.try_shutdown()


def _exit_code(failure: BaseException | None, refused: bool) -> int:
    if failure is None:
        return EXIT_STOPPED
    return EXIT_REFUSED if refused else EXIT_FAILED


def _spin(node: EfmLifecycleNode, threads: int, signals: _StopSignals) -> None:
    """Runs callbacks until the process is to end; when this returns none runs any more."""
    executor = SingleThreadedExecutor() if threads == 1 else ThreadPoolExecutor(threads)
    executor.add_node(node)
    wake = node.create_guard_condition(lambda: None)
    signals.on_signal(lambda: (node.ending.set(), wake.trigger()))
    try:
        while signals.received is None and node.failure is None and not _is_finalized(node):
            executor.spin_once()
    except ExternalShutdownException:
        pass
    except Exception as error:  # noqa: BLE001 - whatever a callback raises: the robot stops
        node.fail(error)
    finally:
        node.ending.set()
        executor.shutdown(timeout_sec=LONGEST_WAIT_S)


def _is_finalized(node: EfmLifecycleNode) -> bool:
    return node._state_machine.current_state[1] == "finalized"


class _StopSignals:
    """Turns SIGINT and SIGTERM into a call from a thread.

    rclpy's own handlers shut the middleware down at once, so that no last command could be sent. A handler in
    Python alone would wait until the executor returns from its wait in C; the wake-up file descriptor is
    written in any case.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._callback: Callable[[], object] = lambda: None
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._thread = threading.Thread(target=self._watch, name="stop signals", daemon=True)

    def __enter__(self) -> _StopSignals:
        self._before = {
            number: signal.signal(number, self._ignore) for number in (signal.SIGINT, signal.SIGTERM)
        }
        self._fd_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread.start()
        return self

    def on_signal(self, callback: Callable[[], object]) -> None:
        """Sets what is called; at once when a signal has come already."""
        self._callback = callback
        if self.received is not None:
            callback()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._fd_before)
        if self.received is None:
            for number, handler in self._before.items():
                signal.signal(number, handler)
        # Else the process ends now, and a second signal on the way may not turn that into a failure.
        self._writer.close()  # Ends the thread.
        self._thread.join()
        self._reader.close()

    def _watch(self) -> None:
        while data := self._reader.recv(16):
            for number in data:
                if number in (signal.SIGINT, signal.SIGTERM) and self.received is None:
                    self.received = number
                    self._callback()

    @staticmethod
    def _ignore(number: int, frame: FrameType | None) -> None:
        """The thread has it; a second signal (a terminal sends one to the whole group) changes nothing."""
