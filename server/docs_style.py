"""How the page of the API looks: light and dark by the reader's choice, on paper and on a phone."""

from __future__ import annotations

from typing import Final

__all__ = ["STYLE"]

STYLE: Final = """
:root {
  --ink: #1d2330; --soft: #5b6577; --line: #e2e6ed; --paper: #ffffff; --tint: #f5f7fa;
  --link: #a11d2a; --get: #0b6b4f; --post: #a11d2a; --put: #8a5200; --code: #f0f2f6;
  --no: #8a5200; --yes: #0b6b4f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e9ef; --soft: #a3adbd; --line: #2c3440; --paper: #12161c; --tint: #191f27;
    --link: #ff8f8f; --get: #5fd3a8; --post: #ff8f8f; --put: #f0b35a; --code: #20272f;
    --no: #f0b35a; --yes: #5fd3a8;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1rem; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", "PingFang SC", "Hiragino Sans GB",
    "Microsoft YaHei", "Noto Sans CJK SC", "Noto Sans SC", sans-serif;
}
a { color: var(--link); text-underline-offset: 2px; }
a:focus-visible, summary:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { font-size: .9em; background: var(--code); border-radius: 3px; padding: .1em .3em; }
h3 code, pre code, td a code, p a code { background: none; padding: 0; }
td a, p a:has(code) { text-decoration-thickness: 1px; text-underline-offset: 4px; }
.skip { position: absolute; left: -999px; }
.skip:focus { left: 1rem; top: 1rem; background: var(--paper); padding: .5rem; z-index: 2; }
nav {
  position: fixed; inset: 0 auto 0 0; width: 17rem; overflow-y: auto; padding: 1.5rem;
  background: var(--tint); border-right: 1px solid var(--line); font-size: .875rem;
}
nav .name { font-size: 1.25rem; font-weight: 700; margin: 0 0 1rem; }
nav .name small { font-weight: 400; color: var(--soft); }
nav ul { list-style: none; margin: 0; padding: 0; }
nav > ul > li { margin-bottom: .9rem; }
nav > ul > li > a { font-weight: 600; }
nav a { color: var(--ink); text-decoration: none; display: block; padding: .15rem 0; }
nav a:hover { color: var(--link); }
nav b, h3 b {
  display: inline-block; min-width: 3.7em; font-size: .75em; letter-spacing: .03em;
}
.get { color: var(--get); } .post { color: var(--post); } .put { color: var(--put); }
main { margin-left: 17rem; padding: 2rem 3rem 6rem; max-width: 66rem; }
h1 { font-size: 2rem; line-height: 1.25; margin: 0 0 1rem; }
h1 span, h2 small { color: var(--soft); font-weight: 400; }
h1 span { font-size: 1.25rem; display: block; }
h2 { margin: 3.5rem 0 1rem; padding-bottom: .4rem; border-bottom: 2px solid var(--line); }
h2 small { font-size: .65em; margin-left: .5em; }
h3 { font-size: 1.1rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h3 i { color: var(--soft); }
h4 { margin: 1.25rem 0 .4rem; font-size: .875rem; color: var(--soft); }
article { padding: 1.5rem 0; border-bottom: 1px solid var(--line); }
article:target h3, tr:target { background: var(--code); }
p { margin: .4rem 0; max-width: 46rem; }
.lead { font-size: 1.05rem; }
.lead span, header p[lang=zh] { color: var(--soft); }
.who { font-size: .875rem; color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .9rem .4rem 0;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 500; }
tbody th { font-weight: 500; white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
.yes { color: var(--yes); } .no { color: var(--no); }
details { margin-top: .75rem; font-size: .875rem; }
summary { cursor: pointer; color: var(--soft); }
pre { background: var(--tint); border: 1px solid var(--line); border-radius: 6px;
  padding: .9rem 1rem; overflow-x: auto; font-size: .85rem; line-height: 1.5; margin: 1rem 0 0; }
@media (max-width: 60rem) {
  nav { position: static; width: auto; border-right: 0; border-bottom: 1px solid var(--line); }
  nav > ul { columns: 2; }
  nav > ul > li { break-inside: avoid; }
  main { margin: 0; padding: 1.5rem 1rem 4rem; }
}
@media print { nav { display: none; } main { margin: 0; max-width: none; } }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
"""
