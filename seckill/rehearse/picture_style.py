"""How the picture of a rehearsal looks, on light paper and on dark."""

from __future__ import annotations

from typing import Final

__all__ = ["STYLE"]

# Without variables, which not everything that shows an SVG knows.
STYLE: Final = """
text{font:12px system-ui,-apple-system,"Segoe UI","PingFang SC","Microsoft YaHei",sans-serif;
fill:#5b6577}
.title{font-size:21px;font-weight:600;fill:#1d2330}.mode{font-size:14px;fill:#a11d2a}
.fact{font-size:14px}.name{font-size:13px;font-weight:600;fill:#1d2330}
.paper{fill:#fff}.grid{stroke:#e2e6ed;fill:none}
.line{fill:none;stroke-width:2;stroke-linejoin:round}.area{fill-opacity:.2;stroke:none}
.waiting{fill:#3b6fb6}.waiting.line{fill:none;stroke:#3b6fb6}.range{fill-opacity:.25}
.stock{fill:#e2a33c}.stock.line{fill:none;stroke:#e2a33c}
.paid{fill:#0b7a5b}.paid.line{fill:none;stroke:#0b7a5b}
.called{fill:#a11d2a}.called.line{fill:none;stroke:#a11d2a}
@media(prefers-color-scheme:dark){
text{fill:#a3adbd}.title,.name{fill:#e6e9ef}.mode{fill:#ff8f8f}.paper{fill:#12161c}
.grid{stroke:#2c3440}
.waiting{fill:#7aa7e6}.waiting.line{stroke:#7aa7e6}.stock{fill:#d9a24a}.stock.line{stroke:#d9a24a}
.paid{fill:#4cc79a}.paid.line{stroke:#4cc79a}.called{fill:#ff8f8f}.called.line{stroke:#ff8f8f}}
"""
