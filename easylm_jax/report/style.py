"""The style sheet of the page: one column, system fonts, light or dark according to the system setting."""

STYLE = """
:root{color-scheme:light dark;--ink:#1c2126;--soft:#5b6670;--rule:#d9dee3;--paper:#fff;--tint:#f5f7f9;
--c0:#2166ac;--c1:#c8601a;--c2:#2e7d4f;--c3:#8250a8;--c4:#b3323c;--c5:#4d5761;--c6:#9a7b0a;--c7:#127c86;
--good:#1f7a45;--bad:#b3323c;--warn:#fff4d6;--warn-ink:#6b4e00}
@media (prefers-color-scheme:dark){:root{--ink:#e4e8ec;--soft:#9aa5af;--rule:#353c43;--paper:#15181b;--tint:#1e2226;
--c0:#6cb0ee;--c1:#f0985a;--c2:#68c08c;--c3:#bd93e0;--c4:#ee7f86;--c5:#b3bdc6;--c6:#d9bb4e;--c7:#5cc3cc;
--good:#68c08c;--bad:#ee7f86;--warn:#3a3013;--warn-ink:#f0d999}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:2.2rem 1.6rem 5rem;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 1rem;font-weight:650;letter-spacing:-.01em}
h2{font-size:1.22rem;margin:3rem 0 .9rem;padding-bottom:.35rem;border-bottom:1px solid var(--rule);font-weight:620}
h3{font-size:1rem;margin:1.7rem 0 .5rem;font-weight:620}h4{margin:1rem 0 .3rem;font-size:.9rem}
p{max-width:50rem}.over{margin:0;color:var(--soft);font-size:.9rem}
.facts{display:flex;flex-wrap:wrap;gap:.7rem 2.4rem;margin:0 0 1rem}.facts div{min-width:5rem}
.facts dt{color:var(--soft);font-size:.8rem}.facts dd{margin:0;font-variant-numeric:tabular-nums;font-weight:560}
.warning{background:var(--warn);color:var(--warn-ink);padding:.55rem .8rem;border-radius:4px;max-width:none}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;font-size:.88rem;padding-top:.4rem}
a{color:var(--c0);text-decoration:none}a:hover{text-decoration:underline}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:.33rem .6rem;text-align:right;vertical-align:top;white-space:nowrap}
th{font-weight:600;vertical-align:bottom;white-space:normal}
th small{display:block;color:var(--soft);font-weight:400;font-size:.78rem}
thead tr:last-child th{border-bottom:1px solid var(--ink)}tbody tr+tr td{border-top:1px solid var(--rule)}
thead tr:first-child th{border-top:1px solid var(--ink)}tbody tr:last-child td{border-bottom:1px solid var(--ink)}
.words{text-align:left}td.words{white-space:normal}td.short{white-space:nowrap}td.words:first-child{white-space:nowrap;font-weight:560}
.first{border-left:1px solid var(--rule)}
.group{text-align:center;color:var(--soft);font-weight:500}.group.named{border-bottom:1px solid var(--rule)}
table.fields{font-size:.82rem}table.fields th{font-weight:400;color:var(--soft);border:0!important;padding:.1rem .75rem}
table.fields td{border:0!important;padding:.1rem .75rem;font:400 .95em ui-monospace,Menlo,Consolas,monospace}
.note,figcaption{color:var(--soft);font-size:.83rem;line-height:1.45;margin:.5rem 0 1.2rem;max-width:56rem}
figure{margin:1.2rem 0;max-width:46rem}.narrow{display:none}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(21rem,100%),1fr));gap:.9rem 1.6rem}
.grid figure{margin:.4rem 0}figcaption{margin:.2rem 0 0}
svg{width:100%;height:auto;display:block;font-family:inherit}
svg.picture{width:min(100%,18rem);margin:.2rem 0 .4rem}svg.small{width:9rem;image-rendering:pixelated}
svg.picture circle{fill:none;stroke:magenta;paint-order:stroke}svg.picture text{fill:magenta}
.key{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;font-size:.82rem;color:var(--soft);margin:.2rem 0 .8rem}
.key svg{width:24px;display:inline-block;margin-right:.4rem;vertical-align:middle}
svg text{fill:var(--ink);font-size:12px}svg .note{fill:var(--soft);font-size:11.5px}svg .label{fill:var(--soft)}
svg .title{font-weight:600;font-size:13px}svg .name{font-weight:560}
svg .grid{stroke:var(--rule);stroke-width:1}svg .axis{stroke:var(--soft)}svg .tick{stroke:var(--soft)}
svg .line{fill:none;stroke-width:1.9;stroke-linejoin:round}svg .thin{fill:none;stroke-width:1;opacity:.38}
svg .band{opacity:.16}
svg .error{stroke-width:1.3;opacity:.65}svg .whisker{stroke:var(--ink);stroke-width:1.3}
svg .d1:not(.error){stroke-dasharray:6 3}svg .d2:not(.error){stroke-dasharray:2 3}
@@COLOURS@@
pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;font:.82rem/1.5 ui-monospace,Menlo,Consolas,monospace}
code{overflow-wrap:anywhere;font:.88em ui-monospace,Menlo,Consolas,monospace}
.prompt{margin:1rem 0 1.6rem}.asked{background:var(--tint);padding:.6rem .8rem;border-radius:4px}
.expected,.reason{margin:.45rem 0 0;font-size:.82rem;max-width:none;overflow-wrap:anywhere;white-space:pre-wrap}
.expected span,.reason{color:var(--soft)}.reason{border-top:1px solid var(--rule);padding-top:.35rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(13rem,100%),1fr));gap:.6rem;margin-top:.5rem}
.card{border:1px solid var(--rule);border-radius:4px;padding:.5rem .7rem}.prompt>.card{margin-top:.4rem}
.card b{font-size:.85rem;font-weight:620}.card .mark{float:right;color:var(--soft);font-size:.78rem}
.card .right{color:var(--good)}.card .wrong{color:var(--bad)}.card pre{margin-top:.3rem}
details{border-bottom:1px solid var(--rule);padding:.35rem 0}summary{cursor:pointer;font-size:.92rem}
details>.scroll{margin:.5rem 0 .8rem}
@media screen and (max-width:40rem){body{padding:1.2rem 1rem 3rem}h1{font-size:1.4rem}
.wide{display:none}.narrow{display:block}.facts{gap:.6rem 1.6rem}th,td{padding:.3rem .45rem}
.scroll{margin:0 -1rem;padding:0 1rem}.scroll table:not(.fields) tr>:first-child{position:sticky;left:-1rem;
background:var(--paper);padding-left:1rem;max-width:11rem;overflow-wrap:break-word}
.scroll td:first-child:not(.short){white-space:normal}
td.words:not(:first-child):not(.short){min-width:9rem}}
@media print{body{max-width:none;padding:0}nav{display:none}section{break-inside:auto}figure{break-inside:avoid}}
""".replace(
    "@@COLOURS@@",
    "\n".join(
        f"svg .s{i}.line,svg .s{i}.thin,svg .s{i}.error{{stroke:var(--c{i})}}"
        f"svg .s{i}.mark,svg .s{i}.bar,svg .s{i}.name,svg .s{i}.band{{fill:var(--c{i})}}"
        for i in range(8)
    ),
)
