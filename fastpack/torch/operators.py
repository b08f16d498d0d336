from typing import Any
def forward(layer: Any, input: Any, hx: Any) -> Any:
    raise NotImplementedError
