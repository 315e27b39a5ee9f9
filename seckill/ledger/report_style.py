"""How the page of a report looks: on a screen, light or dark by the reader's choice; on paper."""

from __future__ import annotations

from typing import Final

__all__ = ["STYLE"]

STYLE: Final = """
:root {
  --ink: #1d2330; --soft: #5b6577; --line: #e2e6ed; --paper: #ffffff; --tint: #f5f7fa;
  --brand: #a11d2a; --ordered: #e2a33c; --paid: #0b7a5b; --warn: #8a5200; --warn-tint: #fff6e5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e9ef; --soft: #a3adbd; --line: #2c3440; --paper: #12161c; --tint: #191f27;
    --brand: #ff8f8f; --ordered: #d9a24a; --paid: #4cc79a; --warn: #f0b35a; --warn-tint: #2a2216;
  }
}
@media print {
  :root {
    --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --tint: #fff;
    --brand: #a11d2a; --ordered: #d08f22; --paid: #0b7a5b; --warn: #8a5200; --warn-tint: #fff;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "PingFang SC", "Hiragino Sans GB",
    "Microsoft YaHei", "Noto Sans CJK SC", "WenQuanYi Micro Hei", sans-serif;
  font-variant-numeric: tabular-nums;
  -webkit-print-color-adjust: exact; print-color-adjust: exact;
}
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 2rem 4rem; }
header { border-bottom: 3px solid var(--brand); padding-bottom: 1.1rem; }
h1 { font-size: 1.9rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
header p { margin: .15rem 0; color: var(--soft); }
header .state { color: var(--ink); font-weight: 600; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .8rem; }
small, h2 small { color: var(--soft); font-weight: 400; font-size: .82em; }
.warn { background: var(--warn-tint); color: var(--warn); border: 1px solid currentColor;
  border-radius: 6px; padding: .6rem .9rem; margin: 1.2rem 0 0; }
.figures { display: grid; grid-template-columns: repeat(4, 1fr); gap: 1rem; margin: 1.5rem 0 0; }
.figures > div { background: var(--tint); border: 1px solid var(--line); border-radius: 8px;
  padding: .9rem 1rem 1rem; }
.figures dt { color: var(--soft); font-size: .85rem; }
.figures dd { margin: 0; }
.figures .big { font-size: 1.7rem; font-weight: 700; line-height: 1.35; letter-spacing: -.01em;
  white-space: nowrap; }
.figures .more { color: var(--soft); font-size: .85rem; }
.columns { display: grid; grid-template-columns: 1fr 1fr; gap: 0 3rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .42rem .9rem .42rem 0;
  border-bottom: 1px solid var(--line); font-weight: 400; }
tr > :last-child { padding-right: 0; }
thead th { color: var(--soft); font-size: .8rem; line-height: 1.35; vertical-align: bottom; }
thead th small { display: block; font-size: inherit; }
.n { text-align: right; white-space: nowrap; }
.strong > * { font-weight: 700; border-top: 2px solid var(--line); }
tbody th small { display: block; }
.of { width: 40%; }
.of i { display: block; height: .7rem; margin-top: .4rem; background: var(--brand);
  border-radius: 2px; opacity: .75; min-width: 2px; }
.scroll { overflow-x: auto; }
svg { display: block; width: 100%; height: auto; margin-top: .6rem; }
svg text { font-size: 12px; fill: var(--soft); }
svg .name { font-size: 13px; fill: var(--ink); font-weight: 600; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .mark { stroke: var(--brand); stroke-width: 1.5; stroke-dasharray: 4 3; }
svg .note { fill: var(--brand); }
.ordered { fill: var(--ordered); } .paid { fill: var(--paid); }
.words { font-size: .85rem; color: var(--soft); margin-top: 2.5rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
.words p { margin: .3rem 0; max-width: 60rem; }
@media (max-width: 48rem) {
  main { padding: 1.5rem 1rem 3rem; }
  .figures { grid-template-columns: 1fr 1fr; }
  .columns { grid-template-columns: 1fr; }
}
svg.narrow { display: none; }
@media screen and (max-width: 48rem) {
  /* The picture shrinks with the page, its words should not. */
  svg.wide { display: none; }
  svg.narrow { display: block; }
}
@media (max-width: 26rem) { .figures { grid-template-columns: 1fr; } }
@page { size: A4; margin: 14mm; }
@media print {
  html { font-size: 10.5px; }
  body { font-size: 1rem; line-height: 1.4; }
  svg text { font-size: 15px; }
  svg .name { font-size: 16px; }
  main { max-width: none; padding: 0; }
  .figures { grid-template-columns: repeat(4, 1fr); gap: .5rem; }
  .columns { grid-template-columns: 1fr 1fr; }
  h2 { margin: 1.6rem 0 .4rem; }
  section, tr, .figures > div { break-inside: avoid; }
  section.long { break-inside: auto; }
  .scroll { overflow: visible; }
}
"""
