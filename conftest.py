"""What every test of the workspace stands on: an own, local ROS graph for each process of pytest.

Set before anything imports rclpy, and inherited by the processes that tests start. Fixtures that only one
package needs are not here.
"""

import contextlib
import os
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A machine that is busy with other things is no fault of the code.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

ROOT = Path(__file__).resolve().parent
DOMAINS = range(1, 102)  # the ROS domains whose ports Linux never gives to others
RESERVATION_PORT = 21500  # plus the domain: who listens there owns the domain


def reserve_domain() -> tuple[int, socket.socket]:
    """Take a ROS domain that no other test process here has, until the returned socket is closed."""
    for domain in DOMAINS:
        reservation = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            reservation.bind(("127.0.0.1", RESERVATION_PORT + domain))
        except OSError:
            reservation.close()
            continue
        return domain, reservation
    raise RuntimeError(
        f"expected a free ROS domain among {DOMAINS}, found none; are {len(DOMAINS)} tests running?"
    )


def pytest_configure(config: pytest.Config) -> None:
    domain, reservation = reserve_domain()
    config.add_cleanup(reservation.close)
    os.environ["ROS_DOMAIN_ID"] = str(domain)
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(ROOT / "config" / "fastdds_localhost.xml"))
    # Comes with CUDA builds of torch, and crashes once Mesa has loaded its own LLVM.
    with contextlib.suppress(ImportError):
        import triton  # noqa: F401


@pytest.fixture
def empty_domain():
    """Environment of processes in a ROS domain of their own, which no node of an earlier test haunts."""
    domain, reservation = reserve_domain()
    with reservation:
        yield {**os.environ, "ROS_DOMAIN_ID": str(domain)}


@pytest.fixture(scope="session")
def ros():
    """rclpy, initialised once in this process: a second init() would collide with the first."""
    import rclpy

    rclpy.init()
    yield rclpy
    rclpy.try_shutdown()
