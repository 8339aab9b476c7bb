"""The embodiment files say of each world what the world says of itself."""

import pytest

from efm_core.embodiment import load_embodiment
from efm_sim.world import make_world


@pytest.mark.parametrize(
    ("embodiment_name", "world_name", "package"),
    [
        ("pointmass", "pointmass", None),
        ("table", "table", None),
        ("metaworld", "metaworld:push-v3", "metaworld"),
        ("metaworld", "metaworld:drawer-open-v3", "metaworld"),
        ("aloha", "aloha:insertion", "gym_aloha"),
    ],
)
def test_an_embodiment_fits_its_world(embodiment_name, world_name, package):
    if package:
        pytest.importorskip(package, reason=f"{world_name} needs {package}, which is not installed here")
    embodiment = load_embodiment(embodiment_name)
    world = make_world(world_name)
    spec = world.spec
    dimensions = embodiment.action.dimensions
    assert spec.state_names == tuple(entry.name for entry in embodiment.state.entries)
    assert spec.action_names == tuple(dimension.name for dimension in dimensions)
    assert spec.action_low == pytest.approx([dimension.low for dimension in dimensions])
    assert spec.action_high == pytest.approx([dimension.high for dimension in dimensions])
    assert dict(spec.cameras) == {camera.name: (camera.height, camera.width) for camera in embodiment.cameras}
    assert spec.control_rate_hz == embodiment.control_rate_hz
    assert spec.max_steps == embodiment.max_steps
    assert not embodiment.dry_run
    world.close()
