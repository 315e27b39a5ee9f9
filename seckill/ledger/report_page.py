"""The report as one page for the merchant: a file that needs nothing from elsewhere and has no
script, in English and Chinese, made to be printed as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import tzinfo
from html import escape
from typing import Final

from seckill.ledger.report import Report
from seckill.ledger.report_chart import chart, first_minute
from seckill.ledger.report_stock import SkuReport
from seckill.ledger.report_style import STYLE
from seckill.status import Status
from seckill.zone import local, span

__all__ = ["render"]

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
_SALE_STATES: Final = {
    "created": "not opened 未开放",
    "open": "running 进行中",
    "paused": "paused 已暂停",
    "closed": "closed 已关闭",
    "settled": "settled 已结清",
}
_ORDER_STATES: Final = {
    "confirmed": "paid 已付款",
    "refunded": "refunded 已退款",
    "held": "held, not paid yet 待付款",
    "paying": "being paid 付款中",
    "expired": "expired unpaid 超时未付",
    "released": "given up 已放弃",
}
_REFUSALS: Final = {
    "conflict": "同一个键用于不同内容",
    "fenced": "服务器不一致",
    "upgrade_needed": "脚本格式不同",
    "unknown_sale": "没有这个场次",
    "unknown_sku": "没有这个 SKU",
    "paused": "场次已暂停",
    "not_open": "尚未开售",
    "ended": "场次已结束",
    "not_allowed": "过期未付订单过多",
    "too_late": "到达服务器已超时",
    "order_limit": "超过单笔限购",
    "sku_limit": "超过该 SKU 每人限购",
    "buyer_limit": "超过每人限购",
    "sold_out": "已售罄",
    "insufficient": "剩余库存不足",
}
_WORDS: Final = """
Gross is everything orders were paid with; net is gross less refunds. Due back is money that came \
late or twice, bought nothing and belongs to the buyer; it is in neither. \
实收总额为订单已付金额；净收入为实收总额减退款。应退款指迟到或重复、未能成交而应退回买家的款项，不计入前两者。
Units that expired, were given up or refunded came back; ordered again are those of them that \
another order took. 超时、放弃或退款的件数为回补；其中再次被下单的为回补再售。
Refusals count answers, not buyers: who asks ten times counts ten. \
拒绝次数按应答计，不按人数计：同一买家请求十次即计十次。
"""


def render(report: Report, zone: tzinfo) -> bytes:
    """The page of a report, in UTF-8, with its times in this zone."""
    title = escape(report.title)
    return f"""<!DOCTYPE html>
<html lang="zh">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{title} · sale report 场次报告</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{_head(report, zone)}
{_figures(report)}
{_curve(report, zone)}
<div class="columns">
{_money(report)}
{_orders(report, zone)}
</div>
{_skus(report)}
{_refusals(report)}
<footer class="words">
{"".join(f"<p>{line}</p>" for line in _WORDS.strip().splitlines())}
<p>seckill · {escape(report.sale)} · event 事件 {report.as_of_seq:,}</p>
</footer>
</main>
</body>
</html>
""".encode()


def _head(report: Report, zone: tzinfo) -> str:
    state = _SALE_STATES.get(report.state, report.state)
    reason = f" ({escape(report.reason)})" if report.reason else ""
    removed = "; its keys have left Redis 数据已移出 Redis" if report.removed_at_ms else ""
    warning = ""
    if report.missing_events:
        warning = (
            f'<p class="warn">{report.missing_events:,} earlier events have not reached the ledger '
            "yet: the figures are not complete. 部分事件尚未写入账本，数字不完整。</p>"
        )
    return f"""<header>
<h1>{escape(report.title)}</h1>
<p><span class="state">{escape(state)}</span>{reason} · {escape(report.sale)} · \
{_moment(report.opens_ms, zone)} – {_moment(report.ends_ms, zone)}</p>
<p>As of 截至 {_moment(report.as_of_ms, zone)} {_offset(report.as_of_ms, zone)}, \
event 事件 {report.as_of_seq:,}{removed}</p>
</header>
{warning}"""


def _figures(report: Report) -> str:
    through = "–" if report.pay_through is None else f"{report.pay_through * 100:.1f} %"
    figures = (
        ("Net revenue 净收入", _yuan(report.net_fen), f"gross 实收 {_yuan(report.gross_fen)}"),
        (
            "Units sold 售出件数",
            f"{report.sold:,}",
            f"of 共 {report.total:,} · unsold 未售 {report.unsold:,}",
        ),
        (
            "Orders paid 付款率",
            through,
            f"{report.paid_orders:,} of 共 {report.orders:,} orders 单",
        ),
        _sold_out(report),
    )
    boxes = "".join(
        f'<div><dt>{name}</dt><dd class="big">{escape(value)}</dd>'
        f'<dd class="more">{escape(more)}</dd></div>'
        for name, value, more in figures
    )
    return f'<dl class="figures">{boxes}</dl>'


def _sold_out(report: Report) -> tuple[str, str, str]:
    if report.sold_out_after_ms is not None:
        more = f"ordered again 回补再售 {report.resold:,}"
        return "Sold out after 售罄用时", span(report.sold_out_after_ms), more
    gone = [one.sold_out_after_ms for one in report.skus if one.sold_out_after_ms is not None]
    more = f"first after 首个 {span(min(gone))}" if gone else "none yet 暂无"
    return "Items sold out 售罄商品", f"{len(gone)} / {len(report.skus)}", more


def _curve(report: Report, zone: tzinfo) -> str:
    picture = chart(report, zone)
    if not picture:
        return "<h2>Nothing was ordered yet <small>尚无订单</small></h2>"
    begin = first_minute(report)
    return f"<section><h2>Sales over time <small>销售曲线</small></h2>{begin}{picture}</section>"


def _money(report: Report) -> str:
    due = f"payments 笔数 {report.due_back_payments:,}"
    rows = [
        _row("Gross 实收总额", _yuan(report.gross_fen)),
        _row("Refunded 已退款", _yuan(-report.refunded_fen)),
        _row("Net 净收入", _yuan(report.net_fen), strong=True),
        _row("Due back to buyers 应退款", _yuan(report.due_back_fen), due),
    ]
    units = [
        _row("Sold 售出", f"{report.sold:,}"),
        _row("Held 占用中", f"{report.held:,}"),
        _row("Unsold 未售", f"{report.unsold:,}"),
        _row("Total 总数", f"{report.total:,}", strong=True),
        _row("Refunded 退款", f"{report.refunded:,}"),
        _row("Came back 回补", f"{report.came_back:,}", f"ordered again 再售 {report.resold:,}"),
    ]
    return (
        f"<section><h2>Money <small>金额</small></h2>{_table(rows)}"
        f"<h2>Units <small>件数</small></h2>{_table(units)}</section>"
    )


def _orders(report: Report, zone: tzinfo) -> str:
    rows = [
        _row(_ORDER_STATES[state], f"{report.orders_by_state[state]:,}")
        for state in _ORDER_STATES
        if report.orders_by_state[state] or state in ("confirmed", "expired")
    ]
    rows.append(_row("Accepted 已受理订单", f"{report.orders:,}", strong=True))
    rows.append(_row("Buyers 买家", f"{report.buyers:,}", f"{report.paying_buyers:,} paid 已付款"))
    if report.pay_median_ms is not None and report.pay_p90_ms is not None:
        rows.append(_row("Half paid within 半数付款用时", span(report.pay_median_ms)))
        rows.append(_row("90 % paid within 九成付款用时", span(report.pay_p90_ms)))
    rows.append(_row("Paid after expiry 超时后付款成交", f"{report.late_orders:,}"))
    if report.first_order_ms:
        rows.append(_row("First order 首单", _moment(report.first_order_ms, zone)))
        rows.append(_row("Last order 末单", _moment(report.last_order_ms, zone)))
    return f"<section><h2>Orders <small>订单</small></h2>{_table(rows)}</section>"


def _table(rows: list[str]) -> str:
    return f"<table><tbody>{''.join(rows)}</tbody></table>"


def _row(name: str, value: str, more: str = "", *, strong: bool = False) -> str:
    mark = ' class="strong"' if strong else ""
    small = f"<small>{escape(more)}</small>" if more else ""
    cells = f'<td class="n">{escape(value)}</td>'
    return f'<tr{mark}><th scope="row">{escape(name)}{small}</th>{cells}</tr>'


_SKU_COLUMNS: Final = (
    ("Item", "商品"),
    ("Price", "单价"),
    ("Total", "总数"),
    ("Sold", "售出"),
    ("Held", "占用"),
    ("Unsold", "未售"),
    ("Refunded", "退款"),
    ("Again", "回补再售"),
    ("Net revenue", "净收入"),
    ("Sold out after", "售罄用时"),
    ("Sold out for", "售罄时长"),
)


def _skus(report: Report) -> str:
    head = "".join(
        f'<th scope="col"{"" if name == "Item" else " class=n"}>{name}<small>{chinese}</small></th>'
        for name, chinese in _SKU_COLUMNS
    )
    rows = "".join(_sku(sku) for sku in report.skus)
    whole = (report.total, report.sold, report.held, report.unsold, report.refunded, report.resold)
    if len(report.skus) > 1:
        rows += (
            '<tr class="strong"><th scope="row">All 合计</th><td></td>'
            + _cells(f"{number:,}" for number in whole)
            + _cells((_yuan(report.net_fen), "", ""))
            + "</tr>"
        )
    return (
        '<section class="long"><h2>Items <small>商品</small></h2><div class="scroll">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _sku(sku: SkuReport) -> str:
    numbers = (sku.total, sku.sold, sku.held, sku.unsold, sku.refunded, sku.resold)
    out = ("–", "–")
    if sku.sold_out_after_ms is not None:
        out = (span(sku.sold_out_after_ms), span(sku.sold_out_ms))
    return (
        f'<tr><th scope="row">{escape(sku.title)}<small>{escape(sku.sku)}</small></th>'
        + _cells((_yuan(sku.price_fen), *(f"{number:,}" for number in numbers)))
        + _cells((_yuan(sku.net_fen), *out))
        + "</tr>"
    )


def _cells(texts: Iterable[str]) -> str:
    return "".join(f'<td class="n">{escape(text)}</td>' for text in texts)


def _refusals(report: Report) -> str:
    if not report.refusals:
        return ""
    most = max(report.refusals.values())
    rows = "".join(
        f'<tr><th scope="row">{escape(_meaning(name))} <small>{escape(_REFUSALS.get(name, ""))}'
        f'</small></th><td class="of"><i style="width:{100 * count / most:.1f}%"></i></td>'
        f'<td class="n">{count:,}</td></tr>'
        for name, count in report.refusals.items()
    )
    whole = sum(report.refusals.values())
    return (
        f"<section><h2>Refused <small>被拒绝的请求 {whole:,}</small></h2>"
        f"<table><tbody>{rows}</tbody></table></section>"
    )


def _meaning(name: str) -> str:
    status = Status.__members__.get(name.upper())
    return name if status is None else status.meaning.partition(";")[0]


def _yuan(fen: int) -> str:
    sign, fen = ("−", -fen) if fen < 0 else ("", fen)
    return f"{sign}¥{fen // 100:,}.{fen % 100:02d}"


def _moment(ms: int, zone: tzinfo) -> str:
    return f"{local(ms, zone):%Y-%m-%d %H:%M:%S}"


def _offset(ms: int, zone: tzinfo) -> str:
    offset = local(ms, zone).strftime("%z")
    return f"{offset[:3]}:{offset[3:5]}"
