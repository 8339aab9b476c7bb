"""Subscriptions that one thread of yours waits for and takes, past the executor.

rclpy's executor collects every entity of the node before each wait, which costs a step of a lockstep loop
more than the step itself (0.5 ms against 0.2 ms on two cores with one image a step). Here a wait covers the
few topics that matter and nothing else. The node, its services and timers stay with the executor.
Left out: services, timers and actions. A topic belongs either here or to the executor, never to both.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription

from efm_ros.qos import OVERRIDES

CLOCK = "/clock"


class _NotForTheExecutor(CallbackGroup):
    """Keeps the executor's hands off its entities."""

    def can_execute(self, entity: object) -> bool:
        return False

    def beginning_execution(self, entity: object) -> bool:
        return False

    def ending_execution(self, entity: object) -> None:
        pass


class Intake:
    """Topics that are taken by whichever one thread calls `take`; every other method may be called from
    any thread.
    """

    def __init__(self, node: Node) -> None:
        """Begins without topics; `node` owns them."""
        self._node = node
        self._group = _NotForTheExecutor()
        self._lock = threading.Lock()
        self._subscriptions: list[Subscription] = []
        self._patient: set[Subscription] = set()
        self._guard = node.create_guard_condition(_nothing, callback_group=self._group)
        self._wait_set: Any = None
        self._size = -1

    def subscribe(
        self,
        message_type: type,
        topic: str,
        callback: Callable[[Any], None],
        qos: QoSProfile,
        raw: bool = False,
        patient: bool = False,
    ) -> Subscription:
        """Adds a topic.

        Args:
            message_type: Its type.
            topic: Its name.
            callback: Called in the taking thread with every message: an instance of the type, or bytes (CDR)
                if `raw`.
            qos: One of the profiles in `efm_ros.qos`; `qos_overrides` parameters change it.
            raw: Leave the messages serialised.
            patient: Its messages may wait where `take` is told so.
        """
        subscription = self._node.create_subscription(
            message_type,
            topic,
            callback,
            qos,
            callback_group=self._group,
            raw=raw,
            qos_overriding_options=OVERRIDES,
        )
        with self._lock:
            self._subscriptions.append(subscription)
            if patient:
                self._patient.add(subscription)
        self.wake()
        return subscription

    def take_clock(self) -> None:
        """Takes the node's /clock too, where it goes by one: hundreds of its messages come every second.

        The clock then stands still while callbacks run; it goes back to the executor at `close`. It is
        patient.
        """
        with self._lock:
            for subscription in self._node.subscriptions:
                if subscription.topic_name == CLOCK and subscription not in self._subscriptions:
                    _give_to(self._group, subscription)
                    self._subscriptions.append(subscription)
                    self._patient.add(subscription)

    def unsubscribe(self, subscription: Subscription) -> None:
        """Removes a topic; its callback may still be running when this returns."""
        with self._lock:
            self._subscriptions.remove(subscription)
            self._patient.discard(subscription)
        self.wake()
        self._node.destroy_subscription(subscription)

    def wake(self) -> None:
        """Lets a waiting `take` return at once; one that is not waiting returns early the next time."""
        self._guard.trigger()

    def take(self, timeout_s: float, patiently: bool = False) -> bool:
        """Waits for messages or `wake`, then calls the callbacks with all that has come, topic by topic.

        Args:
            timeout_s: Longest wait (steady clock).
            patiently: Messages of patient topics do not end the wait.

        Returns:
            True if there was any message. False after a timeout, `wake`, or the end of the context.
        """
        context = self._node.context
        in_use: list[Any] = []
        try:
            # A handle that is entered is not destroyed under the wait.
            subscriptions = self._enter(in_use)
            handles = list(in_use)
            patient = self._patient if patiently else ()
            for handle in (self._guard.handle, context.handle):
                handle.__enter__()
                in_use.append(handle)
            if self._size != len(subscriptions):
                self._wait_set = _rclpy.WaitSet(len(subscriptions), 1, 0, 0, 0, 0, context.handle)
                self._size = len(subscriptions)
            wait_set = self._wait_set
            wait_set.clear_entities()
            for subscription, handle in zip(subscriptions, handles, strict=True):
                if subscription not in patient:
                    wait_set.add_subscription(handle)
            wait_set.add_guard_condition(self._guard.handle)
            try:
                wait_set.wait(max(0, int(timeout_s * 1e9)))
            except _rclpy.RCLError:
                if context.ok():
                    raise
                return False
            ready = set(wait_set.get_ready_entities("subscription"))
            found = False
            for subscription, handle in zip(subscriptions, handles, strict=True):
                if handle.pointer in ready or subscription in patient:
                    found = _drain(subscription, handle) or found
            return found
        finally:
            for handle in reversed(in_use):
                handle.__exit__(None, None, None)

    def close(self) -> None:
        """Removes every topic; call it when no thread takes any more."""
        for subscription in list(self._subscriptions):
            if subscription.topic_name == CLOCK:
                self._subscriptions.remove(subscription)
                _give_to(self._node.default_callback_group, subscription)
            else:
                self.unsubscribe(subscription)
        self._node.destroy_guard_condition(self._guard)

    def _enter(self, in_use: list[Any]) -> list[Subscription]:
        """Returns the topics, with their handles in `in_use`; forgets those that were destroyed meanwhile."""
        with self._lock:
            for subscription in list(self._subscriptions):
                try:
                    subscription.handle.__enter__()
                    in_use.append(subscription.handle)
                except _rclpy.InvalidHandle:
                    self._subscriptions.remove(subscription)  # The clock's, when use_sim_time was unset.
            return list(self._subscriptions)


def _drain(subscription: Subscription, handle: Any) -> bool:
    """Hands over the messages that are there now; at most a queue full, so that one fast topic starves no
    other.
    """
    for taken in range(max(1, subscription.qos_profile.depth)):
        message = handle.take_message(subscription.msg_type, subscription.raw)
        if message is None:
            return taken > 0
        subscription.callback(message[0])
    return True


def _give_to(group: CallbackGroup, subscription: Subscription) -> None:
    """Lets another group take a topic; its events too, since every message wakes who waits for those."""
    subscription.callback_group = group
    for handler in subscription.event_handlers:
        handler.callback_group = group


def _nothing() -> None:
    pass
