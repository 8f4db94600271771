// The table, the pictures, and the controls. See data.js for what they show, charts.js for what is plotted.
// ---- table and pictures -----------------------------------------------------------------------------------------------------------

function drawTable() {
  const keys = data.telling, other = run => run.best && id(run.best.passport) !== data.usual;
  const head = ["run", "state", "step", `${data.same ? "" : "best "}${state.rank}`, "at step", "last", "passport", ...keys.map(short)];
  const cell = (tag, ...inside) => { const node = document.createElement(tag); node.append(...inside); return node; };
  const rows = ranked.slice(0, allRows ? Infinity : TABLE_ROWS).map(run => {
    const s = series(run, state.rank), dot = cell("span"), made = run.best?.passport, stamp = cell("span", made?.id ?? "none");
    dot.className = "dot";
    dot.style.background = colour(run);
    if (other(run)) { stamp.className = "mark"; stamp.prepend("⚠ "); }
    if (made) stamp.title = Object.entries(made).map(([k, v]) => `${k}: ${said(v)}`).join("\n");
    const row = cell("tr", cell("td", dot, run.name), ...[progress(run), (axis(run, "steps").at(-1) ?? 0).toLocaleString("en"), format(run.best?.value),
      run.best ? run.best.step.toLocaleString("en") : "–", format(s?.values.at(-1))].map(t => cell("td", t)), cell("td", stamp),
      ...keys.map(key => cell("td", label(run.config[key]))));
    row.className = run.name === state.lit ? "lit" : "";
    row.onclick = () => light(run.name);
    return row;
  });
  $("table").replaceChildren(cell("thead", cell("tr", ...head.map(name => cell("th", name)))), cell("tbody", ...rows));
  $("ranking").textContent = (ranked.some(other) ? `⚠ marked rows have another passport than most: their ${state.rank} is not comparable, and they come last. ` : "")
    + (data.same ? `Ranked by ${state.rank} at step ${data.shared.toLocaleString("en")}, the last that all of these runs measured.`
      : `Ranked by each run's best ${state.rank}, at whichever step that was: a longer run has had more tries.`)
    + " Shown with the settings that differ. A click on a row or a curve picks a run out."
    + (ranked.length > rows.length ? ` The first ${rows.length} of ${ranked.length}; click here for all.` : "");
  $("ranking").onclick = () => { if (ranked.length > rows.length) { allRows = true; drawTable(); } };
}
function progress(run) {
  if (run.of && axis(run, "steps").at(-1) >= run.of) return "done";
  if (run.running !== null) return run.running ? "running" : "stopped";
  // Where no lock can be asked: a run that has been silent for three times as long as ever before has stopped.
  const at = axis(run, "seconds"), gap = at.reduce((most, second, i) => i && second - at[i - 1] > most ? second - at[i - 1] : most, 0);
  return (data.live ? Date.now() / 1000 : data.made) - run.modified < Math.min(600, 30 + 3 * gap) ? "running" : "stopped";
}

function drawSamples() {
  const with_ = ranked.filter(run => run.samples[state.recipe]?.length), [note] = $("samples").getElementsByClassName("soft");
  const steps = [...new Set(with_.flatMap(run => run.samples[state.recipe].map(([step]) => step)))].sort((a, b) => a - b);
  const now = steps.filter(step => step <= state.when).at(-1) ?? steps[0];
  $("when").hidden = steps.length < 2;
  $("when").max = Math.max(0, steps.length - 1);
  $("when").value = steps.indexOf(now);
  $("when").oninput = event => { state.when = steps[event.target.value]; drawSamples(); };
  $("at").textContent = now === undefined ? "" : `step ${now.toLocaleString("en")}`;
  const figures = with_.slice(0, PICTURES).map(run => {
    const [step, address] = run.samples[state.recipe].filter(([s]) => s <= now).at(-1) ?? run.samples[state.recipe][0];
    const make = (tag, ...inside) => { const node = document.createElement(tag); node.append(...inside); return node; }, image = new Image();
    const rows = make("div", ...(run.rows[state.recipe] ?? []).map(name => make("span", name)));
    image.src = address;
    image.alt = `${run.name}, step ${step.toLocaleString("en")}`;
    rows.className = "rows";
    rows.title = "the class of each row";
    return make("figure", rows, image, make("figcaption", image.alt));
  });
  const inside = data.runs.reduce((n, run) => n + Object.values(run.samples).reduce((m, grids) => m + grids.length, 0), 0);
  note.textContent = (with_.length > PICTURES ? `The ${PICTURES} best of ${with_.length} runs. ` : "The latest picture at or before the step, best run first. ")
    + (inside < data.pictures ? `${inside} of ${data.pictures} pictures are in this file (--pictures MB for more; --serve shows all).` : "");
  $("samples").getElementsByClassName("grids")[0].replaceChildren(...figures);
}

// What diffusion.diagnose and diffusion.pareto found, a list for each run; the rule and what to do where the mouse is.
function drawFindings() {
  const make = (tag, text, ...inside) => { const node = document.createElement(tag); node.append(text, ...inside); return node; };
  $("findings").replaceChildren(...diagnosed().flatMap(run => [make("b", run.name), make("ul", "", ...run.diagnosis.findings.map(one => {
    const item = make("li", `${one.question} `, make(one.normal ? "span" : "b", `${one.answer}: `), one.seen);
    item.title = `rule: ${one.rule} (${one.reference})` + (one.normal ? "" : `\nwhat to do: ${one.remedy}`);
    return item;
  }))]));
  $("ways").replaceChildren(...fronted().flatMap(run => [make("b", run.name), make("ul", "", ...run.front.sentences.map(one => make("li", one)))]));
}

// ---- the page ---------------------------------------------------------------------------------------------------------------------

// A plot is drawn when it comes into view, and again when it is there and something changed.
const watcher = new IntersectionObserver(entries => entries.forEach(({target, isIntersecting}) => {
  target.inView = isIntersecting;
  if (isIntersecting && target.stale) redraw(target);
}), {rootMargin: "200px"});
function redraw(node) {
  node.stale = false;
  DRAW[node.dataset.draw](node);
}

function options(select, names, chosen) {
  select.replaceChildren(...names.map(([value, text]) => new Option(text, value)));
  select.value = names.some(([value]) => value === chosen) ? chosen : names[0]?.[0] ?? "";
  return select.value;
}
function chip(text, on, act) {
  const button = document.createElement("button");
  Object.assign(button, {textContent: text, className: on ? "on" : "", onclick: act});
  button.setAttribute("aria-pressed", on);
  return button;
}

// The side's words: what there is to choose.
function controls() {
  const same = names => names.map(name => [name, name]), made = shown.flatMap(run => Object.values(run.series).flatMap(([, , numbers]) => numbers));
  const ids = [...new Set(made.filter(number => number !== null))].map(number => id(data.passports[number])).filter((name, i, all) => all.indexOf(name) === i);
  options($("rank"), same(data.scalars), state.rank);
  options($("at_step"), [["best", "the best of each run"], ...(data.shared >= 0 ? [["same", `step ${data.shared.toLocaleString("en")}, which all measured`]] : [])], state.at);
  const groups = data.telling.includes(state.group) ? data.telling : [...data.telling, state.group].filter(Boolean);
  state.group = options($("group"), [["", "run"], ...same(groups)], state.group);
  state.passport = options($("passport"), [["", ids.length > 1 ? `all ${ids.length}, marked` : "all"], ...same(ids)], state.passport);
  state.recipe = options($("recipe"), same(data.recipes), state.recipe);
  state.term = options($("term"), same(data.terms), state.term);
  state.profile = options($("profile"), same(data.profiled), state.profile);
  $("recipe").hidden = data.recipes.length < 2;
  const rest = [...data.keys, ...Object.keys(data.common)].filter(key => !data.telling.includes(key));
  $("keys").replaceChildren(...[...data.telling, ...rest].map(key => new Option("", key + "=")));
  $("others").replaceChildren(...rest.map(key => new Option("", key)));
  $("charts").replaceChildren(...data.scalars.map(key => chip(key, state.charts.has(key), () => {
    state.charts.has(key) ? state.charts.delete(key) : state.charts.add(key);
    draw();
  })));
  $("facets").replaceChildren(...data.telling.filter(key => distinct(key).length <= 10).slice(0, 12).map(facet));
  $("mean").disabled = !state.group;
  $("smoothed").textContent = state.smooth ? state.smooth : "off";
}

// A key's values as buttons that write the filter.
function facet(key) {
  const box = document.createElement("div"), name = document.createElement("div"), chips = document.createElement("div");
  const terms = state.filter.split(/\s+/).filter(Boolean), mine = terms.find(term => term.startsWith(key + "="));
  const on = mine ? mine.slice(key.length + 1).split(",") : [];
  Object.assign(box, {className: "facet"}); Object.assign(name, {className: "soft", textContent: short(key), title: key}); Object.assign(chips, {className: "chips"});
  chips.append(...distinct(key).map(value => chip(value, on.includes(value), () => {
    const next = on.includes(value) ? on.filter(v => v !== value) : [...on, value];
    state.filter = $("filter").value = [...terms.filter(term => term !== mine), ...(next.length ? [`${key}=${next}`] : [])].join(" ");
    draw();
  })));
  box.append(name, chips);
  return box;
}

function draw() {
  choose();
  controls();
  const none = data.runs.length === 0;
  $("title").textContent = document.title = data.folder;
  $("count").textContent = `${shown.length === data.runs.length ? "" : shown.length + " of "}${data.runs.length} run${data.runs.length === 1 ? "" : "s"}, `
    + `${data.live ? "live" : "read"} ${new Date(data.made * 1000).toLocaleString("en-GB", {dateStyle: "medium", timeStyle: "short"})}`;
  $("empty").hidden = shown.length > 0;
  $("sections").hidden = none;
  $("empty").textContent = none ? `No run below ${data.folder} has recorded a number yet. The first is two minutes away:` : "No run passes the filter.";
  if (none) $("empty").append(Object.assign(document.createElement("pre"), {textContent: "make train\nor\npython train.py"}));
  $("warnings").hidden = !data.warnings.length;
  $("warnings").textContent = ["⚠ Not all that is in this folder is shown.", ...data.warnings.slice(0, WARNINGS),
    ...(data.warnings.length > WARNINGS ? [`… and ${data.warnings.length - WARNINGS} more.`] : [])].join("\n");
  legend(state.group ? [...colours].map(([value, shade]) => [`${short(state.group)} ${value}`, shade]) : ranked.map(run => [run.name, colour(run), run]));
  $("note").textContent = [state.charts.size ? "" : "Choose curves on the left.", data.thinned ? `Curves other than metrics are thinned to about ${data.thinned} points.` : ""].join(" ");
  const wanted = data.scalars.filter(key => state.charts.has(key)), kept = [...$("curves").children];
  kept.filter(box => !wanted.includes(box.title_)).forEach(box => { watcher.unobserve(box.lastChild); Plotly.purge(box.lastChild); box.remove(); });
  wanted.forEach((key, i) => {
    const box = kept.find(box => box.title_ === key) ?? chart(key);
    if ($("curves").children[i] !== box) $("curves").insertBefore(box, $("curves").children[i] ?? null);
  });
  $("parallel").hidden = ranked.filter(run => run.best).length < 2 || !data.telling.some(key => distinct(key, shown).length > 1);
  $("samples").hidden = !data.recipes.length;
  $("quarters").hidden = !data.terms.length;
  $("profiles").hidden = !data.profiled.length;
  $("diagnoses").hidden = !diagnosed().length;
  $("fronts").hidden = !fronted().length;
  drawTable();
  drawSamples();
  drawFindings();
  for (const node of document.querySelectorAll("[data-draw]")) {
    node.stale = true;
    watcher.observe(node);
    if (node.inView && node.offsetParent) redraw(node);
  }
}
function legend(entries) {
  const rest = entries.length - LEGEND;
  $("legend").replaceChildren(...entries.slice(0, LEGEND).map(([name, shade, run]) => {
    const dot = document.createElement("span"), entry = document.createElement("span");
    dot.className = "dot";
    dot.style.background = shade;
    entry.append(dot, name);
    if (run) entry.onclick = () => light(run.name);
    return entry;
  }), rest > 0 ? `and ${rest} more` : "");
}
function chart(key) {
  const box = document.createElement("div"), title = document.createElement("h3"), warning = document.createElement("div"), node = document.createElement("div");
  Object.assign(box, {className: "chart", title_: key}); Object.assign(warning, {className: "warning", hidden: true}); node.className = "plot";
  title.textContent = key;
  Object.assign(node.dataset, {draw: "curve", key});
  box.append(title, warning, node);
  return box;
}

for (const name of ["group", "rank", "x", "y", "passport", "recipe", "term", "profile"]) $(name).onchange = e => { state[name] = e.target.value; draw(); };
$("at_step").onchange = e => { state.at = e.target.value; draw(); };
$("other").onchange = e => {
  state.group = named(e.target.value) ?? state.group;
  e.target.value = "";
  draw();
};
for (const name of ["mean", "logx"]) $(name).onchange = e => { state[name] = e.target.checked; draw(); };
let soon;
const later = (name, value) => { state[name] = value; clearTimeout(soon); soon = setTimeout(draw, 150); };
$("filter").oninput = e => later("filter", e.target.value);
$("smooth").oninput = e => later("smooth", +e.target.value);

let lost = false;
async function poll() {
  try {
    const answer = await fetch("data.json?since=" + data.stamp);
    if (answer.status === 200) load(await answer.text());
    if (answer.status === 200 || lost) draw();
    else drawTable(); // a run may have stopped
    lost = false;
  } catch {
    lost = true;
    $("count").textContent = "The server does not answer; trying again.";
  }
  setTimeout(poll, 5000);
}
load($("data").textContent);
draw();
if (data.live) setTimeout(poll, 5000);
