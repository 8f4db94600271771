// Curves, their bands and axes, and the sweep. See data.js for what they are drawn from.
// ---- curves -----------------------------------------------------------------------------------------------------------------------

const UNITS = [[7200, 3600, "hours"], [180, 60, "minutes"], [0, 1, "seconds"]];
function unit() {
  if (state.x !== "seconds") return [1, state.x === "steps" ? "step" : "images seen"];
  const longest = shown.reduce((most, run) => Math.max(most, axis(run, "seconds").at(-1) || 0), 0);
  return UNITS.find(([from]) => longest >= from).slice(1).map((v, i) => i ? `wall time (${v})` : v);
}

// The mean with exponentially falling weights, corrected at the start; gaps stay gaps.
function smoothed(values) {
  let mean = 0, weight = 0;
  return values.map(value => {
    if (!Number.isFinite(value)) return value;
    mean = state.smooth * mean + (1 - state.smooth) * value;
    weight = state.smooth * weight + 1 - state.smooth;
    return mean / weight;
  });
}

// A run's curve, cut where its passport changes: [{run, passport, x, y, low, high}]. Its band is one standard error wide where there is one.
function pieces(run, key, seconds) {
  const s = series(run, key), found = [];
  if (!s) return found;
  const x = axis(run, state.x), spread = series(run, key + "/error") ?? series(run, key + "/std"), low = series(run, key + "/low"), high = series(run, key + "/high");
  s.values.forEach((value, i) => {
    const passport = s.passport(i);
    if (!accepted(passport)) return;
    let piece = found.at(-1);
    if (!piece || id(piece.passport) !== id(passport)) found.push(piece = {run, passport, steps: [], x: [], y: [], low: [], high: []});
    piece.steps.push(s.at[i]);
    piece.x.push(x[s.at[i]] / seconds);
    piece.y.push(value);
    const of = band => band?.values[band.at.indexOf(s.at[i])];
    if (spread) { piece.low.push(value - of(spread)); piece.high.push(value + of(spread)); }
    else if (low && high) { piece.low.push(of(low)); piece.high.push(of(high)); }
  });
  for (const piece of found) { piece.raw = piece.y; if (state.smooth) piece.y = smoothed(piece.y); }
  return found;
}

// Mean and standard deviation over those runs of each colour that have a value there: at a step where x is time, which no two runs share.
function averaged(all) {
  const groups = new Map();
  for (const piece of all) {
    const name = colour(piece.run) + id(piece.passport);
    if (!groups.has(name)) groups.set(name, {piece, at: new Map()});
    piece.x.forEach((x, i) => {
      if (!Number.isFinite(piece.y[i])) return;
      const at = groups.get(name).at, where = state.x === "seconds" ? axis(piece.run, "steps")[piece.steps[i]] : x;
      if (!at.has(where)) at.set(where, []);
      at.get(where).push([x, piece.y[i]]);
    });
  }
  return [...groups.values()].map(({piece, at}) => {
    const rows = [...at].sort((a, b) => a[0] - b[0]).map(([, points]) => {
      const n = points.length, [x, mean] = [0, 1].map(j => points.reduce((sum, point) => sum + point[j], 0) / n);
      return [x, mean, Math.sqrt(points.reduce((sum, [, y]) => sum + (y - mean) ** 2, 0) / Math.max(1, n - 1))];
    });
    const column = f => rows.map(f);
    return {...piece, group: true, x: column(r => r[0]), y: column(r => r[1]), low: column(r => r[1] - r[2]), high: column(r => r[1] + r[2])};
  });
}

// Logarithmic where the reader says so; where nothing is said, where positive numbers differ by more than a factor of 30.
function scale(all) {
  if (state.y !== "auto") return {type: state.y};
  const [low, high] = all.flatMap(p => p.y).reduce(([a, b], y) => Number.isFinite(y) ? [Math.min(a, y), Math.max(b, y)] : [a, b], [Infinity, -Infinity]);
  return {type: low > 0 && high / low > 30 ? "log" : "linear"};
}

// One trace for each colour and mark, its runs set apart by gaps: a thousand runs are a dozen traces. `order` lists the passports.
// Of very many points only every second, third, ... of each run is drawn, and its last.
function traces(all, order, extra = {}) {
  const made = new Map(), points = all.reduce((n, p) => n + p.x.length, 0);
  const stride = Math.ceil(points / DRAWN); // more than a screen can show: fewer runs show every point
  const few = points < 4000 && points / all.length < 60;
  for (const piece of all) {
    const lit = state.lit === null || piece.run.name === state.lit;
    const look = [colour(piece.run), dash(order, piece.passport), lit, piece.x.length === 1];
    const name = look.join();
    if (!made.has(name)) made.set(name, {x: [], y: [], owner: [], type: "scatter", hoverinfo: "none", connectgaps: false, opacity: lit ? 1 : 0.15,
      mode: look[3] ? "markers" : few ? "lines+markers" : "lines", marker: {size: look[3] ? 7 : 4},
      line: {color: look[0], dash: look[1], width: state.lit !== null && lit ? 3 : all.length > 100 ? 1 : 1.8}, ...extra});
    const trace = made.get(name);
    trace.marker.color = look[0];
    for (let i = 0, last = piece.x.length - 1; i <= last; i = i < last ? Math.min(last, i + stride) : last + 1) {
      trace.x.push(piece.x[i]); trace.y.push(piece.y[i]); trace.owner.push(piece);
    }
    trace.x.push(null); trace.y.push(null); trace.owner.push(null);
  }
  return [...made.values()];
}
// What papers measured beside these pieces' runs: a line from side to side for each number, solid where every run that names it may be
// compared with it, dashed where one may not; it says why where the mouse is. [{value, label, solid, says: [...]}]
function papers(all, key) {
  const found = new Map();
  for (const run of new Set(all.map(piece => piece.run))) {
    for (const [value, label, says, comparable] of run.published?.[key] ?? []) {
      if (!found.has(label)) found.set(label, {value, label, solid: true, says: new Map()});
      const line = found.get(label);
      line.solid &&= comparable;
      line.says.set(says, [...(line.says.get(says) ?? []), run.name]);
    }
  }
  return [...found.values()].map(line => ({...line, says: [...line.says].slice(0, 6).map(([says, runs]) =>
    line.says.size > 1 ? `${runs.slice(0, 4).join(", ")}: ${says}` : says)}));
}
function across(lines, all) {
  const xs = all.flatMap(piece => piece.x).filter(x => Number.isFinite(x) && (!state.logx || x > 0));
  const [low, high] = xs.reduce(([a, b], x) => [Math.min(a, x), Math.max(b, x)], [Infinity, -Infinity]), points = 40;
  return xs.length ? lines.map(({value, label, solid, says}) => {
    const owner = {published: true, run: {name: `published: ${label}`, config: {}}, says: says.join("\n")};
    const x = Array.from({length: points + 1}, (_, i) => low + (high > low ? high - low : Math.abs(low) || 1) * i / points);
    return {x, y: x.map(() => value), owner: x.map(() => owner), type: "scatter", mode: "lines+text", hoverinfo: "none", line: {color: "#667380", width: 1.2, dash: solid ? "solid" : "dash"},
      text: x.map((_, i) => i ? "" : label), textposition: "top right", textfont: {size: 11, color: "#667380"}, published: solid};
  }) : [];
}
const translucent = (hex, alpha) => hex + Math.round(alpha * 255).toString(16).padStart(2, "0");
const band = piece => ({x: [...piece.x, ...[...piece.x].reverse()], y: [...piece.high, ...[...piece.low].reverse()], type: "scatter", mode: "none",
  fill: "toself", fillcolor: translucent(colour(piece.run), 0.15), hoverinfo: "skip"});

// ---- drawing ----------------------------------------------------------------------------------------------------------------------

function plot(node, drawn, layout) {
  const font = {family: "system-ui, Segoe UI, Liberation Sans, sans-serif", size: 12, color: "#667380"};
  const axisLook = {gridcolor: "#edf0f2", zeroline: false, linecolor: "#cfd6dc", automargin: true, exponentformat: "power"};
  const axes = Object.fromEntries(Object.entries(layout).filter(([k]) => /^[xy]axis/.test(k)).map(([k, v]) => [k, {...axisLook, ...v}]));
  Plotly.react(node, drawn, {showlegend: false, hovermode: "closest", font, margin: {l: 52, r: 12, t: 28, b: 40}, paper_bgcolor: "#fff",
    plot_bgcolor: "#fff", ...layout, ...axes}, {displaylogo: false, responsive: true, displayModeBar: layout.displayModeBar ?? "hover", modeBarButtons: [["toImage", "resetScale2d"]]});
  if (node.listening) return;
  node.listening = true;
  node.on("plotly_hover", event => hover(event));
  node.on("plotly_unhover", () => { $("tip").style.display = "none"; });
  node.on("plotly_click", event => {
    const piece = event.points[0].data.owner?.[event.points[0].pointNumber];
    if (!piece?.published) light(piece?.run.name);
  });
}

function hover({points: [point], event}) {
  const piece = point.data.owner?.[point.pointNumber];
  if (!piece) return;
  const tip = $("tip"), made = piece.passport, names = Object.entries(made ?? {}).filter(([k]) => k !== "id");
  const title = document.createElement("b");
  title.textContent = piece.group && state.group ? `${state.group}: ${label(piece.run.config[state.group])}` : piece.run.name;
  const lines = [piece.says ?? `${format(point.y)} at ${point.x.toLocaleString("en")} (${unit()[1]})`,
    ...(piece.group ? [] : [data.telling.filter(k => k in piece.run.config).slice(0, 12).map(k => `${short(k)}=${label(piece.run.config[k])}`).join("  ")]),
    ...(made ? [`passport ${made.id}`, ...names.map(([k, v]) => `  ${k}: ${said(v)}`)] : [])];
  tip.replaceChildren(title, "\n" + lines.filter(Boolean).join("\n"));
  tip.style.display = "block";
  const {clientX: x, clientY: y} = event;
  tip.style.left = Math.max(4, x + 16 + tip.offsetWidth > innerWidth ? x - 16 - tip.offsetWidth : x + 16) + "px";
  tip.style.top = Math.max(4, Math.min(y + 12, innerHeight - tip.offsetHeight - 8)) + "px";
}
const said = value => value && typeof value === "object" ? Object.entries(value).map(([k, v]) => `${k} ${said(v)}`).join(", ") : String(value ?? "none");
const format = value => value === undefined || value === null || !Number.isFinite(value) ? "–" : +value.toPrecision(4) + "";

function light(name) {
  state.lit = name === undefined || state.lit === name ? null : name;
  draw();
}

function drawCurve(node) {
  const key = node.dataset.key, [seconds, title] = unit();
  let all = shown.flatMap(run => pieces(run, key, seconds));
  const beside = papers(all, key), lines = across(beside, all);
  const [order, warning] = marks(all), bands = [], [box] = node.parentNode.getElementsByClassName("warning");
  box.textContent = warning;
  box.hidden = !warning;
  if (state.mean && state.group) all = averaged(all);
  if (all.length <= BAND_RUNS) bands.push(...all.filter(p => p.low.length > 1 && (state.lit === null || state.lit === p.run.name)).map(band));
  const raw = state.smooth && !state.mean && all.length <= RAW_RUNS
    ? traces(all.map(p => ({...p, y: p.raw})), order, {mode: "lines", opacity: 0.2, hoverinfo: "skip"}) : [];
  plot(node, [...bands, ...lines, ...raw, ...traces(all, order)], {uirevision: [key, state.x, state.logx, state.y, state.filter].join(),
    xaxis: {title: {text: title}, type: state.logx ? "log" : "linear"}, yaxis: scale([...all, ...lines])});
}

const DRAW = {
  curve: drawCurve,
  quarters(node) {
    const keys = [...new Set(shown.flatMap(run => Object.keys(run.series)))].filter(k => k.replace(PART, "") === state.term && PART.test(k)).sort();
    const [seconds, title] = unit(), drawn = [], layout = {grid: {rows: 1, columns: keys.length, pattern: "independent"}, annotations: []};
    keys.forEach((key, i) => {
      const n = i ? i + 1 : "", wide = 1 / keys.length;
      const all = shown.flatMap(run => pieces(run, key, seconds));
      drawn.push(...traces(all, [""], {xaxis: "x" + n, yaxis: "y" + n}));
      layout["xaxis" + n] = {title: {text: title}, type: state.logx ? "log" : "linear", domain: [i * wide + 0.025, (i + 1) * wide - 0.01]};
      layout["yaxis" + n] = scale(all);
      layout.annotations.push({text: `${i}/${keys.length} < t ≤ ${i + 1}/${keys.length}`, showarrow: false, xref: "paper", yref: "paper", x: (i + 0.5) * wide, y: 1.08});
    });
    plot(node, drawn, {...layout, margin: {l: 40, r: 12, t: 26, b: 40}, uirevision: [state.term, state.x, state.logx, state.y, state.filter].join()});
  },
  profiles(node) {
    const all = shown.filter(run => state.profile in run.profiles).map(run => {
      const [step, y] = run.profiles[state.profile], s = series(run, state.profile.replace(/\/[^/]*$/, ""));
      return {run, passport: s ? s.passport(s.at.length - 1) : null, x: y.map((_, i) => i), y};
    });
    const [order, warning] = marks(all), box = node.previousElementSibling;
    box.textContent = warning;
    box.hidden = !warning;
    plot(node, traces(all, order, {mode: "lines"}), {xaxis: {title: {text: "timestep"}}, yaxis: scale(all)});
  },
  diagnoses(node) {
    const looks = {"model/train": "solid", "model/heldout": "dash", "exact/train": "dot"};
    const drawn = diagnosed().flatMap(run => Object.keys(looks).filter(name => name in run.diagnosis.errors).map(name => {
      const {log_snr: x, errors, step} = run.diagnosis, y = errors[name].map((v, k) => errors.gaussian ? v / errors.gaussian[k] : v);
      const owner = x.map((at, k) => ({run, says: `${name}: ${format(errors[name][k])} at log-SNR ${format(at)}, step ${step.toLocaleString("en")}`}));
      const lit = state.lit === null || state.lit === run.name;
      return {x, y, owner, type: "scatter", mode: "lines+markers", hoverinfo: "none", opacity: lit ? 1 : 0.15, marker: {size: 4, color: colour(run)},
        line: {color: colour(run), dash: looks[name], width: 1.8}};
    }));
    plot(node, drawn, {xaxis: {title: {text: "log-SNR, from clean data to noise"}, autorange: "reversed"}, yaxis: {type: "log", range: [-1.5, 1.5]},
      shapes: [{type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: {color: "#9aa5b1", width: 1}}]});
  },
  fronts(node) {
    const stem = run => run.front.key.replace(/@\w+/, ""), all = fronted(), unit = all[0]?.front.unit in FRONT_UNITS ? all[0].front.unit : "calls", drawn = [];
    for (const run of all.filter(run => stem(run) === stem(all[0]) && run.front.unit === unit)) {
      const lit = state.lit === null || state.lit === run.name, first = one => one.state === "on the front";
      const points = [...run.front.points].sort((a, b) => a[unit] - b[unit]);
      for (const [some, look] of [[points.filter(one => !first(one)), {mode: "markers", opacity: lit ? 0.35 : 0.1}],
        [points.filter(first), {mode: "lines+markers", opacity: lit ? 1 : 0.15, line: {shape: "hv", color: colour(run), width: 1.8}}]])
        drawn.push({type: "scatter", hoverinfo: "none", x: some.map(one => one[unit]), y: some.map(one => one.value), marker: {size: 6, color: colour(run)},
          error_y: {array: some.map(one => one.half_width), color: colour(run), thickness: 1, width: 2}, ...look,
          owner: some.map(one => ({run, says: `${one.label}: ${stem(run)} ${format(one.value)} ± ${format(one.half_width)} of `
            + `${one.images.toLocaleString("en")} images, ${one.calls} calls, ${format(one.gflop)} GFLOP and ${format(one.ms)} ms an image, ${one.state}`}))});
    }
    const y = drawn.flatMap(trace => trace.y);
    plot(node, drawn, {xaxis: {title: {text: FRONT_UNITS[unit]}}, yaxis: {title: {text: all.length ? stem(all[0]) : ""}, type: y.every(v => v > 0) ? "log" : "linear"}});
  },
  sweep: drawSweep,
};
const FRONT_UNITS = {calls: "calls of the network for an image", gflop: "GFLOP an image", ms: "ms an image"};
const fronted = () => ranked.filter(run => run.front.points?.length).slice(0, PICTURES);
const diagnosed = () => ranked.filter(run => run.diagnosis.findings).slice(0, PICTURES);

// Parallel coordinates: each axis from 0 to 1, numbers by size (by order of magnitude where they span some), words by rank.
function drawSweep(node) {
  const rows = ranked.filter(run => run.best);
  const telling = data.telling.filter(key => new Set(rows.map(run => label(run.config[key]))).size > 1), settings = telling.slice(0, AXES);
  const rest = telling.length - settings.length, [note] = node.parentNode.getElementsByClassName("soft");
  note.textContent = "One line a run, from its settings to the value that it is ranked by; darker is better."
    + (rest ? ` The ${AXES} most telling settings, those that were typed first; ${rest} more ${rest > 1 ? "differ and are" : "differs and is"} left out.` : "");
  const dims = [...settings.map(key => [short(key), run => run.config[key]]), [state.rank, run => run.best.value]].map(([name, of]) => scaled(name, rows.map(of)));
  const pieces = rows.map((run, r) => ({run, passport: run.best.passport, x: dims.map((_, d) => d), y: dims.map(dim => dim.at[r]),
    says: `${state.rank} = ${format(run.best.value)} at step ${run.best.step.toLocaleString("en")}`}));
  const [order, warning] = marks(pieces), [box] = node.parentNode.getElementsByClassName("warning"), shades = new Map();
  box.textContent = warning;
  box.hidden = !warning;
  pieces.forEach((piece, r) => {
    const name = [RAMP[Math.floor((1 - r / Math.max(1, rows.length)) * (RAMP.length - 0.001))], dash(order, piece.passport)];
    const lit = state.lit === null || state.lit === piece.run.name;
    shades.has(name + lit) ? shades.get(name + lit).pieces.push(piece) : shades.set(name + lit, {name, lit, pieces: [piece]});
  });
  const drawn = [...shades.values()].reverse().map(({name: [color, dash], lit, pieces}) => ({type: "scatter", mode: "lines", hoverinfo: "none", opacity: lit ? 1 : 0.15,
    x: pieces.flatMap(p => [...p.x, null]), y: pieces.flatMap(p => [...p.y, null]), owner: pieces.flatMap(p => [...p.x.map(() => p), null]),
    line: {color, dash, width: rows.length > 100 ? 1 : 2}}));
  const room = Math.max(6, Math.floor((node.clientWidth - 92) / dims.length / 7)); // in letters; the end of a key tells more than its beginning
  const fit = text => text.length > room ? "…" + text.slice(1 - room) : text;
  const ticks = dims.flatMap((dim, d) => dim.ticks.map(([y, text]) => ({x: d, y, text: fit(text), hovertext: text, showarrow: false, xanchor: "left",
    xshift: 5, bgcolor: "#ffffffd0", borderpad: 1, font: {size: 11}})));
  const names = dims.map(({name}, d) => ({x: d, y: 1.14, text: fit(name), hovertext: name, showarrow: false, font: {color: "#1f2933"}}));
  plot(node, drawn, {displayModeBar: false, annotations: [...names, ...ticks], margin: {l: 46, r: 46, t: 10, b: 10},
    shapes: dims.map((_, d) => ({type: "line", x0: d, x1: d, y0: -0.04, y1: 1.04, layer: "below", line: {color: "#9aa5b1", width: 1}})),
    xaxis: {visible: false, range: [-0.15, dims.length - 0.55], fixedrange: true}, yaxis: {visible: false, range: [-0.08, 1.22], fixedrange: true}});
}
function scaled(name, values) {
  const words = [...new Set(values.map(label))], numbers = values.every(v => typeof v === "number" && Number.isFinite(v));
  const place = i => words.length > 1 ? i / (words.length - 1) : 0.5;
  const apart = i => words.length <= 6 && values.length > words.length ? 0.05 * (i / (values.length - 1) - 0.5) : 0; // so that no line hides another
  if (!numbers) {
    words.sort((a, b) => a - b || (a < b ? -1 : 1));
    return {name, at: values.map((v, i) => place(words.indexOf(label(v))) + apart(i)), ticks: words.slice(0, 20).map((w, i) => [place(i), w])};
  }
  const low = values.reduce((a, b) => Math.min(a, b), Infinity), high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const log = low > 0 && high / low >= 30, f = log ? Math.log : v => v, at = v => high > low ? (f(v) - f(low)) / (f(high) - f(low)) : 0.5;
  const marked = words.length <= 6 ? words.map(Number) : [0, 0.25, 0.5, 0.75, 1].map(u => log ? Math.exp(f(low) + u * (f(high) - f(low))) : low + u * (high - low));
  return {name, at: values.map((v, i) => at(v) + apart(i)), ticks: marked.map(v => [at(v), format(v)])};
}
