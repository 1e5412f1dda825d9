"""The reference is about torchpipe's own backends, whatever tests before have registered."""

import pytest

from torchpipe.registry import unregister


@pytest.fixture(autouse=True)
def only_own_backends(request):
    if request.node.originalname in (
        "test_a_generated_page_is_what_the_declarations_say",
        "test_every_text_of_the_reference_has_a_chinese_one",
        "test_a_chinese_text_names_the_same_code_as_its_original",
    ):
        unregister()
