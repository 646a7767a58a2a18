// Draws the charts of a report and lists its dead units. What all pages share is in page.js.
// Plotly comes packed in the page; tables and searches do not wait for it.
// Plotly parses tags in text, so names go through plain().

const data = JSON.parse(document.getElementById("data").textContent);
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (text, most) =>
  text.length <= most ? text : `${text.slice(0, most >> 2)}…${text.slice(text.length - most + (most >> 2) + 1)}`;

// ---- Unpacking

function unpacked({ dtype, shape, bdata }) {
  const bytes = Uint8Array.from(atob(bdata), (c) => c.charCodeAt(0));
  const kind = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array }[dtype];
  const values = new kind(bytes.buffer);
  if (shape.length === 1) return values;
  return Array.from({ length: shape[0] }, (_, row) => values.subarray(row * shape[1], (row + 1) * shape[1]));
}

const lives = data.lives;
const lines = lives ? [lives.whole, ...lives.sites] : [];
for (const line of lines)
  for (const kind of ["dead", "nonfinite", "died", "revived", "states"])
    if (line[kind]) line[kind] = unpacked(line[kind]);
const edges = lives ? lives.edges : [];
const windowName = (at) => (at === 0 ? `step ${edges[1]}` : `steps ${edges[at]}–${edges[at + 1]}`);

// ---- Colours

let printing = false;
const PAPER = 680; // pixels that A4 and US Letter have between their margins

function colour(name) {
  const probe = document.body.appendChild(make("i", "", { hidden: true }));
  probe.style.color = `var(--${name})`;
  if (printing) probe.style.colorScheme = "light";
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

document.addEventListener("themed", () => draw());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
for (const [event, now] of [["beforeprint", true], ["afterprint", false]])
  addEventListener(event, () => { printing = now; draw(); });

// ---- Which site is shown

const MARKS_NAMED = 12; // the most marks whose names fit beside each other
const ALL_UNITS = 1000; // the most rows of single units that are distinguishable in one picture
const SITES = "\u0000sites", UNITS = "\u0000units"; // no name of a site begins so
let chosen = UNITS;

function choose(name) {
  chosen = name;
  for (const select of document.querySelectorAll("[data-choose]"))
    select.value = [...select.options].some((option) => option.value === name) ? name : select.options[0].value;
  for (const tile of document.querySelectorAll(".tile"))
    tile.setAttribute("aria-pressed", String(tile.dataset.site === name));
  for (const row of document.querySelectorAll("#sites tbody tr"))
    row.classList.toggle("chosen", row.dataset.site === name);
  draw();
}

function prepareChoice() {
  const canShowUnits = lives && lives.sites.every((site) => site.states) && lives.whole.units <= ALL_UNITS;
  chosen = canShowUnits ? UNITS : SITES;
  for (const select of document.querySelectorAll("[data-choose]")) {
    if ("all" in select.dataset) {
      if (canShowUnits) select.append(make("option", "all units", { value: UNITS }));
      select.append(make("option", "all sites", { value: SITES }));
      for (const { name } of lives.sites) select.append(make("option", name, { value: name }));
    } else {
      select.append(make("option", "all", { value: canShowUnits ? UNITS : SITES }));
      for (const { name } of data.firing) select.append(make("option", name, { value: name }));
    }
    select.value = chosen;
    select.addEventListener("change", () => choose(select.value));
  }
  for (const tile of document.querySelectorAll(".tile, .pick")) {
    const { site } = tile.dataset.site === undefined ? tile.closest("tr").dataset : tile.dataset;
    tile.addEventListener("click", () => choose(chosen === site ? select0().value : site));
  }
  document.querySelectorAll(".tile").forEach((tile) => tile.setAttribute("aria-pressed", "false"));
}
const select0 = () => document.querySelector("[data-choose]").options[0];

// ---- Charts

function base(extra) {
  const ink = colour("quiet");
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
    margin: { l: 64, r: 16, t: 26, b: 44 },
    showlegend: false,
    autosize: !printing,
    width: printing ? PAPER : undefined,
    hovermode: "closest",
    bargap: 0.06,
    ...extra,
  };
}
const axis = (title, extra) => ({
  title: { text: title, standoff: 8 },
  gridcolor: colour("line"),
  linecolor: colour("line"),
  zeroline: false,
  fixedrange: true,
  ...extra,
});
// A title that lies above its axis is read more easily than one that stands beside it.
const above = (text, y = 1) => ({
  text, x: 0, y, xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", yshift: 4, showarrow: false,
  font: { color: colour("ink") } });
const options = (name) => ({
  displaylogo: false,
  responsive: true,
  modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
  toImageButtonOptions: { format: "svg", filename: `reludiag-${name}` },
});

function drawFiring() {
  const rows = data.firing.filter(({ name }) => name === chosen);
  const shown = rows.length ? rows : data.firing;
  $("firing-block").hidden = !shown.length; // none is finite
  if (!shown.length) return;
  const counts = shown[0].counts.map((_, bin) => shown.reduce((sum, row) => sum + row.counts[bin], 0));
  const ends = counts.map((_, bin) => (100 * bin) / (counts.length - 1));
  const bin = (at) => (at === 0 ? "in none" : `in ${at === 1 ? "up to" : `${ends[at - 1]}–`}${at === 1 ? " " : ""}${ends[at]} %`);
  Plotly.react($("firing"), [{
    type: "bar",
    x: ends.map((end, at) => (at === 0 ? -3.4 : end - 2.5)),
    width: ends.map(() => 4.6),
    y: counts,
    marker: { color: ends.map((_, at) => colour(at === 0 ? "dead" : "rate")) },
    customdata: counts.map((count, at) => `${many(count, "unit")} fire${count === 1 ? "s" : ""} ${bin(at)} of the samples`),
    hovertemplate: "%{customdata}<extra></extra>",
  }], base({
    xaxis: axis("Share of samples in which a unit fires", {
      range: [-6.5, 101], tickvals: [-3.4, 0, 25, 50, 75, 100], ticktext: ["never", "", "25 %", "50 %", "75 %", "100 %"], showgrid: false }),
    yaxis: axis("", { rangemode: "tozero", tickformat: ",d" }),
    annotations: [above("Units")],
  }), options("firing"));
}

function raster(names, room) {
  // Rows of states: units in the order of their deaths. If there are fewer rows than units,
  // a row shows several units in their worst state, so that no death is hidden.
  const S = data.states;
  const grave = [S.unknown, S.alive, S.revived, S.born_dead, S.dead, S.nonfinite];
  const rank = grave.map((_, state) => grave.indexOf(state));
  const rows = [], labels = [], bounds = [], centres = [];
  const total = names.reduce((sum, site) => sum + site.units, 0);
  const step = Math.max(1, Math.ceil(total / room));
  for (const site of names) {
    const first = site.states.map((row) => {
      const at = row.findIndex((state) => state === S.dead || state === S.born_dead || state === S.nonfinite);
      return at < 0 ? Infinity : at;
    });
    const lost = site.states.map((row) => row.reduce((sum, state) => sum + (rank[state] > 2), 0));
    const order = site.states.map((_, unit) => unit)
      .sort((a, b) => first[a] - first[b] || lost[b] - lost[a] || a - b);
    const begin = rows.length;
    for (let at = 0; at < order.length; at += step) {
      const group = order.slice(at, at + step);
      rows.push(step === 1 ? site.states[group[0]] : site.states[group[0]].map(
        (_, column) => group.reduce((worst, unit) => {
          const state = site.states[unit][column];
          return rank[state] > rank[worst] ? state : worst;
        }, S.unknown)));
      labels.push({ site, units: group });
    }
    bounds.push(rows.length);
    centres.push((begin + rows.length - 1) / 2);
  }
  return { rows, labels, bounds, centres, step };
}

const STATES = [
  ["alive", "alive", "alive"], ["revived", "revived", "alive again"], ["born_dead", "born-dead", "dead since step 0"],
  ["dead", "dead", "died"], ["nonfinite", "nonfinite", "not finite"],
];

function drawLife() {
  const chart = $("life");
  const one = lives.sites.find((site) => site.name === chosen);
  const byUnit = one ? Boolean(one.states) : chosen === UNITS;
  const shown = one ? [one] : lives.sites;
  const line = one || lives.whole;
  const narrow = chart.clientWidth < 600;
  const room = printing ? 460 : narrow ? 500 : 720;
  const columns = edges.length - 1;
  const wanted = narrow ? 12 : 26;
  const labelOf = (site) => plain(short(site.name, wanted));
  const traces = [], shapes = [];
  let height, ticks, note, tell;
  if (byUnit) {
    const { rows, labels, bounds, centres, step } = raster(shown, room);
    height = Math.max(90, Math.min(room, rows.length * (rows.length < 120 ? 5 : 3), room));
    const used = STATES.filter(([state]) => rows.some((row) => row.includes(data.states[state])));
    const z = rows.map((row) => Array.from(row, (state) => state || null));
    const scale = STATES.flatMap(([state, name]) => {
      const at = data.states[state] - 1;
      return [[at / 5, colour(name)], [(at + 1) / 5, colour(name)]];
    });
    traces.push({ type: "heatmap", z, x: edges, zmin: 0.5, zmax: 5.5, colorscale: scale, showscale: false, hoverinfo: "none", xaxis: "x", yaxis: "y" });
    shapes.push(...bounds.slice(0, -1).map((bound) => ({
      type: "line", xref: "paper", x0: 0, x1: 1, yref: "y", y0: bound - 0.5, y1: bound - 0.5, line: { color: colour("page"), width: 2 } })));
    ticks = one ? { tickvals: [] }
      : { tickvals: centres, ticktext: shown.map(labelOf) };
    states(used);
    note = `A row is ${step === 1 ? "a unit" : `up to ${step} units, in their worst state`}; in each site, the first to die are at the top.`;
    tell = (row, column) => {
      const { site, units } = labels[row];
      const state = STATES.find(([name]) => data.states[name] === rows[row][column]);
      const named = units.length === 1 ? `unit ${units[0]}` : `units ${units.slice(0, 4).join(", ")}${units.length > 4 ? ", …" : ""}`;
      return `${site.name}, ${named}\n${windowName(column)}: ${state ? state[2] : "not called"}`;
    };
  } else {
    height = Math.max(60, Math.min(room, shown.length * 24));
    const step = Math.max(1, Math.ceil(shown.length / room));
    // Units that are not finite are worse than any share of dead units.
    const NONFINITE = 6;
    const bad = shown.some((site) => site.nonfinite.some(Boolean));
    const rows = shown.map((site) => Array.from(site.dead, (dead, at) => (site.nonfinite[at] ? NONFINITE : dead / site.units)));
    const z = rows.filter((_, at) => at % step === 0)
      .map((_, at) => rows[0].map((_, column) => Math.max(...rows.slice(at * step, (at + 1) * step).map((row) => row[column]))));
    const bins = [0, 0.05, 0.2, 0.5, 1];
    const heat = (part) => (part === NONFINITE ? part : part === 0 ? 0 : 1 + bins.slice(1).filter((least) => part >= least).length);
    traces.push({
      type: "heatmap", z: z.map((row) => row.map(heat)), x: edges, zmin: -0.5, zmax: 6.5, showscale: false, hoverinfo: "none",
      colorscale: ["h0", "h1", "h2", "h3", "h4", "h5", "nonfinite"].flatMap((name, at) => [[at / 7, colour(name)], [(at + 1) / 7, colour(name)]]),
      ygap: shown.length < 60 ? 2 : 0, xaxis: "x", yaxis: "y" });
    const every = Math.ceil((z.length * 15) / height);
    const named = z.map((_, at) => at).filter((at) => at % every === 0);
    ticks = one ? { tickvals: [] } : { tickvals: named, ticktext: named.map((at) => labelOf(shown[at * step])) };
    states([["h0", "h0", "none dead"], ["h1", "h1", "under 5 %"], ["h2", "h2", "5–20 %"], ["h3", "h3", "20–50 %"], ["h4", "h4", "50 % and over"], ["h5", "h5", "all"],
      ...(bad ? [["nonfinite", "nonfinite", "some not finite"]] : [])]);
    note = one ? "This site has too many units to show each: its row shows the share that is dead."
      : `A row is ${step === 1 ? "a site" : `up to ${step} sites, in the colour of the worst`}, coloured by the share of dead units.`
        + (shown.some((site) => site.states) ? " Choose a site to see its units." : "");
    tell = (row, column) => {
      const site = shown.slice(row * step, (row + 1) * step)
        .reduce((a, b) => (a.nonfinite[column] || (!b.nonfinite[column] && a.dead[column] / a.units >= b.dead[column] / b.units) ? a : b));
      const lost = site.nonfinite[column] ? `, ${site.nonfinite[column].toLocaleString("en")} not finite` : "";
      return `${site.name}\n${windowName(column)}: ${site.dead[column].toLocaleString("en")} of ${many(site.units, "unit")} dead${lost}`;
    };
  }
  $("life-note").textContent = note;

  const rates = line.rate.some((rate) => rate !== null);
  const x = edges.slice(1);
  const bars = (name, values, sign) => ({
    type: "bar", yaxis: "y2", xaxis: "x", marker: { color: colour(name), line: { width: 0 } }, hoverinfo: "none",
    x: x.map((to, at) => (edges[at] + to) / 2), width: x.map((to, at) => (to - edges[at]) * 0.94), y: Array.from(values, (value) => sign * value) });
  traces.push(bars("dead", line.died, 1), bars("revived", line.revived, -1));
  if (rates) traces.push({ // from one end of each window to the other
    type: "scatter", mode: "lines", yaxis: "y3", xaxis: "x", hoverinfo: "none", line: { color: colour("rate"), width: 2 },
    x: x.flatMap((to, at) => [edges[at], to]), y: line.rate.flatMap((rate) => [rate, rate]) });
  // Heights in pixels, from the top: the learning rate, the deaths, the raster, a title above each.
  const head = rates ? 196 : 96, whole = height + head + 26 + 44;
  const from = (top) => 1 - top / (whole - 70);
  const big = Math.max(1, ...line.died, ...line.revived);
  const back = line.revived.some(Boolean);
  const longest = one ? 0 : Math.max(...shown.map((site) => Math.min(site.name.length, wanted)));
  const deaths = rates ? [98, 164] : [0, 66];
  shapes.push(...data.marks.map(({ step }) => ({
    type: "line", xref: "x", x0: step, x1: step, yref: "paper", y0: 0, y1: 1, line: { color: colour("ink"), width: 1, dash: "dot" } })));
  const named = data.marks.length <= MARKS_NAMED ? data.marks : [];
  Plotly.react(chart, traces, base({
    height: whole, barmode: "overlay", shapes, margin: { l: Math.max(64, longest * 7.6 + 14), r: 16, t: 26, b: 44 },
    xaxis: axis("Optimizer steps", { range: [edges[0], edges[columns]], fixedrange: false, showgrid: false, anchor: "y", tickformat: ",d", ...(edges[columns] - edges[1] < 10 ? { dtick: 1 } : { nticks: narrow ? 5 : 10 }) }),
    yaxis: axis("", { domain: [0, from(head)], autorange: false, range: [traces[0].z.length - 0.5, -0.5], showgrid: false, ticks: "", ...ticks }),
    yaxis2: axis("", {
      domain: [from(deaths[1]), from(deaths[0])], range: [back ? -big * 1.1 : 0, big * 1.1], zeroline: true, zerolinecolor: colour("line"),
      tickvals: back ? [-big, 0, big] : [0, big], ticktext: (back ? [big, 0, big] : [0, big]).map((count) => count.toLocaleString("en")) }),
    yaxis3: axis("", { domain: [from(66), 1], rangemode: "tozero", nticks: 3, tickformat: "~g", visible: rates }),
    annotations: [
      ...(rates ? [above(one ? "Learning rate" : "Largest learning rate")] : []),
      above(back ? "Died (up) and revived (down) in a window" : "Died in a window", from(deaths[0])),
      above(byUnit ? many(line.units, "unit") : one ? "Share dead" : `${many(shown.length, "site")}, share dead`, from(head)),
      ...named.map(({ step, name }) => ({
        text: plain(short(name, 16)), x: step, y: from(deaths[0]), xref: "x", yref: "paper", xanchor: "left", yanchor: "top", showarrow: false,
        font: { size: 10, color: colour("ink") } })),
    ],
  }), options("life"));
  chart.removeAllListeners?.("plotly_hover");
  chart.removeAllListeners?.("plotly_unhover");
  chart.on("plotly_hover", ({ points: [point], event }) => {
    let text;
    if (point.curveNumber === 0) text = tell(...point.pointNumber);
    else {
      const at = point.curveNumber === 3 ? point.pointNumber >> 1 : point.pointNumber;
      const rate = line.rate[at] === null ? "" : `\nlearning rate ${Number(line.rate[at].toPrecision(4))}`;
      text = `${windowName(at)}: ${line.died[at].toLocaleString("en")} died, ${line.revived[at].toLocaleString("en")} revived${rate}`;
    }
    showTip(text, event);
  });
  chart.on("plotly_unhover", () => { $("tip").hidden = true; });
  drawRates(line);
}

function states(used) {
  $("states").replaceChildren(...used.map(([, name, label]) => {
    const entry = make("span"), swatch = make("i");
    swatch.style.background = `var(--${name})`;
    entry.append(swatch, label);
    return entry;
  }));
}

function showTip(text, event) {
  const tip = $("tip");
  tip.textContent = text;
  tip.hidden = false;
  const at = event.touches ? event.touches[0] : event;
  tip.style.left = `${Math.max(8, Math.min(at.clientX + 14, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(8, Math.min(at.clientY + 14, innerHeight - tip.offsetHeight - 8))}px`;
}

function drawRates(line) {
  const at = line.rate.map((rate, index) => index).filter((index) => line.rate[index] !== null);
  const varies = new Set(at.map((index) => line.rate[index])).size > 2;
  $("rate-block").hidden = !varies;
  if (!varies) return;
  Plotly.react($("rates"), [{
    type: "scatter", mode: "markers", x: at.map((index) => line.rate[index]), y: at.map((index) => line.died[index]),
    marker: { size: 8, opacity: 0.75, color: colour("dead"), line: { width: 0 } },
    customdata: at.map((index) => `${windowName(index)}: ${many(line.died[index], "death")} at ${Number(line.rate[index].toPrecision(4))}`),
    hovertemplate: "%{customdata}<extra></extra>",
  }], base({
    xaxis: axis("Largest learning rate in the window", { tickformat: "~g", rangemode: "tozero" }),
    yaxis: axis("", { rangemode: "tozero", tickformat: ",d" }),
    annotations: [above("Deaths")],
  }), options("rates"));
}

// Below the lives, with the same steps: a picture with its own axis for each metric.
function drawMetrics() {
  if (!$("metrics")) return;
  const count = data.metrics.length, part = 1 / count, each = 110;
  const key = (at) => (at === 0 ? "y" : `y${at + 1}`);
  const traces = data.metrics.map(({ name, steps, mean, last }, at) => ({
    type: "scatter", mode: steps.length < 60 ? "lines+markers" : "lines", x: steps, y: mean, yaxis: key(at), connectgaps: false,
    line: { color: colour("rate"), width: 2 },
    customdata: steps.map((step, row) => `${plain(name)} at step ${step.toLocaleString("en")}: mean ${mean[row] === null ? "not finite" : Number(mean[row].toPrecision(4))}, last ${last[row] === null ? "not finite" : Number(last[row].toPrecision(4))}`),
    hovertemplate: "%{customdata}<extra></extra>",
  }));
  const axes = Object.fromEntries(data.metrics.map((_, at) => [`yaxis${at === 0 ? "" : at + 1}`,
    axis("", { domain: [1 - (at + 1) * part + 0.06 * part, 1 - at * part - 0.22 * part], nticks: 3, tickformat: "~g" })]));
  Plotly.react($("metrics"), traces, base({
    height: 70 + each * count,
    ...axes,
    xaxis: axis("Optimizer steps", { range: [edges[0], Math.max(edges.at(-1), ...data.metrics.map(({ steps }) => steps.at(-1)))], showgrid: false, tickformat: ",d", anchor: key(count - 1) }),
    annotations: data.metrics.map(({ name }, at) => above(plain(short(name, 60)), 1 - at * part - 0.22 * part)),
  }), options("metrics"));
}

function draw() {
  if (!globalThis.Plotly) return;
  drawFiring();
  if (lives) drawLife();
  if (lives) drawMetrics();
}

async function unpackPlotly() {
  const bytes = Uint8Array.from(atob($("plotly").textContent), (c) => c.charCodeAt(0));
  const script = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  // The policy of the page has the hash of this text: no other script could be added so.
  document.head.append(make("script", await new Response(script).text()));
}

async function startCharts() {
  try {
    await unpackPlotly();
    if (!globalThis.Plotly) throw new Error("the packed script is not the one this page may run");
    draw();
  } catch (error) {
    const why = "DecompressionStream" in globalThis ? error.message : "this browser cannot unpack the script that draws it (Chrome 80, Firefox 113, Safari 16.4 and later can)";
    for (const chart of document.querySelectorAll(".chart"))
      chart.replaceWith(make("p", `No chart: ${why}. The tables have the figures.`, { className: "note" }));
  }
}

// ---- The dead units

function parsedCsv(text) {
  const rows = [[]];
  for (const [, quoted, bare, end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^",\n]*))(,|\n|$)/g)) {
    rows.at(-1).push(quoted === undefined ? bare : quoted.replaceAll('""', '"'));
    if (end === "\n") rows.push([]);
    if (end === "") break;
  }
  return rows.filter((row) => row.length > 1);
}

function prepareDead() {
  if (!$("dead")) return;
  const SHOWN = {
    site: "Site", unit: "Unit", born_dead: "Born dead", died_step: "Died by step", lr_at_death: "Learning rate then",
    revived_step: "Last revived at step", cause: "Cause", max_preactivation: "Largest pre-activation", firing_rate_upper: "Fires at most in" };
  const TEXT = new Set(["site", "born_dead", "cause"]);
  const [names, ...all] = parsedCsv(data.csv);
  const columns = Object.keys(SHOWN).map((name) => names.indexOf(name))
    .filter((at) => at >= 0 && (at < 2 || all.some((row) => row[at] !== "")));
  const head = make("tr");
  for (const at of columns) {
    const cell = make("th", "", { scope: "col", className: TEXT.has(names[at]) ? "t" : "n" });
    cell.append(make("button", SHOWN[names[at]], { type: "button" }));
    head.append(cell);
  }
  $("dead").tHead.append(head);
  // Up, as in the other reports: rounded down, a bound would be untrue.
  const upper = (percent) => {
    const digits = 1 - Math.floor(Math.log10(percent));
    return (Math.ceil(percent * 10 ** digits) / 10 ** digits).toFixed(Math.max(digits, 0));
  };
  let rows = all, most = 50;
  const written = (name, value) =>
    value === "" ? "" : name === "born_dead" ? (value === "True" ? "yes" : "no")
      : name === "firing_rate_upper" ? `${upper(100 * value)} %`
        : TEXT.has(name) ? value : Number(Number(value).toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 6, useGrouping: false });
  const show = () => {
    $("dead").tBodies[0].replaceChildren(...rows.slice(0, most).map((row) => {
      const line = make("tr");
      line.append(...columns.map((at) => make("td", written(names[at], row[at]), { className: TEXT.has(names[at]) ? "" : "n" })));
      return line;
    }));
    $("dead-count").textContent = `${Math.min(most, rows.length).toLocaleString("en")} of ${many(rows.length, "unit")} shown.`;
    $("more").hidden = rows.length <= most;
  };
  sortable($("dead"), (column, rising, numbers) => {
    const at = columns[column];
    rows = [...rows].sort((a, b) => (a[at] === "") - (b[at] === "") || compared(a[at], b[at], numbers) * (rising ? 1 : -1));
    show();
  });
  $("dead-search").addEventListener("input", ({ target }) => {
    const wanted = target.value.trim().toLowerCase();
    rows = all.filter((row) => `${row[0]} ${row[1]} ${row[names.indexOf("cause")] ?? ""}`.toLowerCase().includes(wanted));
    show();
  });
  $("more").addEventListener("click", () => { most *= 4; show(); });
  $("download").addEventListener("click", () => download(data.csv, "dead-units.csv"));
  show();
}

prepareChoice();
prepareDead();
choose(chosen);
startCharts();
