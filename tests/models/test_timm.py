import pytest

from onecycle.models.backbones import build


def test_a_network_of_timm_itself_has_a_feature_map() -> None:
    try:
        import timm  # noqa: F401
    except ImportError as error:
        pytest.skip(f"timm cannot be imported: {error}")
    build("timm:test_resnet").require_map(32)
