"""No answer to an action client is lost, whichever thread asks."""

import threading

from rclpy.action import ActionServer
from rclpy.node import Node

from efm_msgs.action import Act
from efm_ros.action_client import ActionClient
from efm_ros.executors import SingleThreadedExecutor

GOALS = 60


def test_every_goal_is_answered_while_another_thread_spins(ros, impatient_threads):
    # rclpy's own client loses some: it notes a request only after it has sent it.
    node = Node("asking")

    def execute(goal):
        goal.succeed()
        return Act.Result(steps=goal.request.max_steps)

    server = ActionServer(node, Act, "act", execute)
    client = ActionClient(node, Act, "act")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    ending = threading.Event()

    def spin():
        while not ending.is_set():
            executor.spin_once(timeout_sec=0.1)

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        assert client.wait_for_server(20.0)
        for index in range(GOALS):
            answered = threading.Event()
            sent = client.send_goal_async(Act.Goal(max_steps=index))
            sent.add_done_callback(lambda _, answered=answered: answered.set())
            assert answered.wait(20.0), f"goal {index} was not answered"
            ended = threading.Event()
            result = sent.result().get_result_async()
            result.add_done_callback(lambda _, ended=ended: ended.set())
            assert ended.wait(20.0), f"the result of goal {index} did not come"
            assert result.result().result.steps == index
    finally:
        ending.set()
        executor.wake()
        thread.join(10.0)
        executor.shutdown()
        client.destroy()
        server.destroy()
        node.destroy_node()
