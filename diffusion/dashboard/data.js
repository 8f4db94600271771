// The page's data. `data` is what page.py made; `state` is what the reader chose; everything drawn (charts.js, app.js) follows from the two.
"use strict";

const $ = id => document.getElementById(id);
const PALETTE = ["#2f6fb0", "#d9772b", "#3a923a", "#b83b3b", "#7d5fb2", "#7a5546", "#c9609f", "#5f6b76", "#a09a23", "#1f9eb0"];
const RAMP = ["#f3d69b", "#e9b473", "#d98d62", "#bf6763", "#9c4a6b", "#74386f", "#472f6c", "#1d2352"];
const DASHES = ["solid", "dot", "dash", "longdash", "dashdot", "longdashdot"];
const HIGHER_IS_BETTER = /^(is|inception|precision|recall|density|coverage|accuracy|images_per_second)/;
const PART = /\/t\d+of\d+$/, BAND = /\/(error|std|low|high)$/;
const NOT_IN_ID = ["step", "code", "statistics", "nfe", "intervals", "weights", "codec", "device", "images", "id"]; // as in diffusion/metrics/passport.py
const TABLE_ROWS = 200, PICTURES = 24, RAW_RUNS = 20, DRAWN = 60000, BAND_RUNS = 40, LEGEND = 30, AXES = 8, WARNINGS = 500;

let data, shown = [], ranked = [], colours = new Map(), allRows = false;
const state = {filter: "", group: "", mean: false, rank: "", at: "best", x: "steps", logx: false, y: "auto", smooth: 0, passport: "",
  charts: null, lit: null, recipe: "", when: Infinity, term: "", profile: ""};

// ---- data -------------------------------------------------------------------------------------------------------------------------

function unpack(text, Type) {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return new Type(bytes.buffer);
}

// JSON whose objects inherit nothing: a run may call a metric __proto__ or toString.
const bare = (...all) => Object.assign(Object.create(null), ...all);
const read = text => JSON.parse(text, (_, value) => value && typeof value === "object" && !Array.isArray(value) ? bare(value) : value);

function load(text) {
  data = read(text);
  data.runs.forEach((run, i) => { run.i = i; run.cache = bare(); run.config = bare(data.common, run.config); });
}

// What the shown runs have to show.
function survey() {
  const keys = new Set(shown.flatMap(run => Object.keys(run.series)));
  const count = key => shown.filter(run => key in run.series).length;
  const some = key => !state.passport || shown.some(run => measured(run, key).length);
  data.scalars = [...keys].filter(key => !PART.test(key) && !(BAND.test(key) && keys.has(key.replace(BAND, ""))) && some(key)).sort((a, b) =>
    b.includes("@") - a.includes("@") || (b === "loss") - (a === "loss") || count(b) - count(a) || (a < b ? -1 : 1));
  data.terms = [...new Set([...keys].filter(key => PART.test(key)).map(key => key.replace(PART, "")))].sort();
  data.profiled = [...new Set(shown.flatMap(run => Object.keys(run.profiles)))].sort();
  data.recipes = [...new Set(shown.flatMap(run => Object.keys(run.samples).filter(recipe => run.samples[recipe].length)))].sort();
  const metrics = data.scalars.filter(key => key.includes("@"));
  state.charts ??= new Set([...metrics.slice(0, 3), ...(data.scalars.includes("loss") ? ["loss"] : [])]);
}

// A run's axis or series, decoded when first asked for.
function axis(run, name) {
  return run.cache["axis " + name] ??= unpack(run[name], name === "seconds" ? Float32Array : Float64Array);
}
function series(run, key) {
  if (!(key in run.series)) return null;
  const [at, values, made] = run.series[key];
  return run.cache[key] ??= {
    at: run.cache["at " + at] ??= unpack(run.at[at], Uint32Array), values: unpack(values, Float32Array),
    passport: Array.isArray(made) ? i => data.passports[made[i]] : () => data.passports[made]};
}
const id = passport => passport?.id ?? "";

// The finite values of a run's key: [{value, step, passport}]. With a passport chosen, those that it made.
function measured(run, key) {
  const s = series(run, key);
  return [...s?.values ?? []].map((value, i) => ({value, step: axis(run, "steps")[s.at[i]], passport: s.passport(i)}))
    .filter(({value, passport}) => Number.isFinite(value) && accepted(passport));
}

// Each shown run's value to rank it by, `run.best`: its best over all steps, or that at the last step which all runs measured. Of a run
// measured in several ways, those of the passport that most runs have go first: the others cannot be compared with them.
function rank() {
  const all = shown.map(run => measured(run, state.rank)), some = all.filter(values => values.length), runs = new Map();
  some.forEach(values => new Set(values.map(v => id(v.passport))).forEach(name => runs.set(name, (runs.get(name) ?? 0) + 1)));
  data.usual = [...runs].sort((a, b) => b[1] - a[1] || (a[0] === "") - (b[0] === ""))[0]?.[0];
  const steps = some.map(values => new Set(values.map(v => v.step)));
  data.shared = steps.length > 1 ? Math.max(...[...steps[0]].filter(step => steps.every(of => of.has(step)))) : -Infinity;
  data.same = state.at === "same" && data.shared >= 0;
  shown.forEach((run, i) => {
    const here = data.same ? all[i].filter(v => v.step === data.shared) : all[i];
    run.best = here.reduce((best, v) => !best || before(worth(v), worth(best)) < 0 ? v : best, null);
  });
  const place = run => run.best ? worth(run.best) : [2, 0];
  ranked = [...shown].sort((a, b) => before(place(a), place(b)) || a.i - b.i);
}
// A value's place among others, smaller is better: first whether it can be compared with most.
const worth = ({value, passport}) => [+(id(passport) !== data.usual), HIGHER_IS_BETTER.test(state.rank) ? -value : value];
const before = (a, b) => a[0] - b[0] || a[1] - b[1];
const accepted = passport => !state.passport || !passport || passport.id === state.passport;

// ---- filter and colours -----------------------------------------------------------------------------------------------------------

// The key that a word names: itself, or the shortest that ends with it.
function named(word) {
  const known = new Set([...data.keys, ...Object.keys(data.common), ...data.runs.flatMap(run => Object.keys(run.words))]);
  return known.has(word) ? word : [...known].filter(key => key.endsWith("." + word)).sort((a, b) => a.length - b.length)[0];
}

// "schedule=linear,cosine lr<0.001 seed!=0 word" -> a test of a run. A key may be given by its end; throws a sentence. Values are those of
// the configuration, and the command line's words: schedule=cosine finds the class Cosine in runs that did not record their words too.
function parsed(text) {
  return text.split(/\s+/).filter(Boolean).map(term => {
    const [, name, op, value] = term.match(/^([^=<>!]+)(!=|<=|>=|=|<|>)(.*)$/) ?? [];
    if (!op) return run => run.name.includes(term);
    const key = named(name), plain = word => word.replace(/_/g, "").toLowerCase();
    if (!key) throw `No run has a key ${name} in its configuration.`;
    if (value === "") throw `${name}${op} what?`;
    const one = v => run => [run.config[key], run.words[key]].some(of => of !== undefined && plain(v) === plain(label(of)))
      || v === label(run.config[key]) || (typeof run.config[key] === "number" && +v === run.config[key]);
    const any = value.match(/\[[^\]]*\]|[^,]+/g).map(one); // a list is one value
    const number = run => typeof run.config[key] === "number" ? run.config[key] : NaN;
    return {"=": run => any.some(f => f(run)), "!=": run => !any.some(f => f(run)), "<": run => number(run) < +value,
      ">": run => number(run) > +value, "<=": run => number(run) <= +value, ">=": run => number(run) >= +value}[op];
  });
}
// A key by its last words, as many as tell it from the others.
function short(key) {
  const words = key.split(".");
  for (let n = 1; n < words.length; n++) {
    const end = words.slice(-n).join(".");
    if (!data.telling.some(other => other !== key && (other === end || other.endsWith("." + end)))) return end;
  }
  return key;
}
const label = value => value === undefined || value === null ? "none" : String(value).replace(/\s+/g, "");
const distinct = (key, runs = data.runs) => [...new Set(runs.map(run => label(run.config[key])))].sort((a, b) => a - b || (a < b ? -1 : a > b));

function choose() {
  let tests = [];
  try { tests = parsed(state.filter); $("complaint").textContent = ""; } catch (sentence) {
    if (typeof sentence !== "string") throw sentence;
    $("complaint").textContent = sentence;
  }
  $("filter").classList.toggle("bad", $("complaint").textContent !== "");
  shown = data.runs.filter(run => tests.every(test => test(run)));
  survey();
  if (data.scalars.length && !data.scalars.includes(state.rank)) state.rank = data.scalars[0];
  rank();
  const values = state.group ? distinct(state.group, shown) : [];
  const ordered = values.length > 3 && values.every(v => !isNaN(v));
  colours = new Map(values.map((v, i) => [v, ordered ? RAMP[Math.round(1 + i / (values.length - 1) * (RAMP.length - 2))] : PALETTE[i % 10]]));
}
const colour = run => state.group ? colours.get(label(run.config[state.group])) : PALETTE[run.i % 10];

// ---- passports ----------------------------------------------------------------------------------------------------------------------

// The ids of the passports of some pieces ("" for none), the most common first; and a sentence that says in what they differ, or "".
function marks(all) {
  const counts = new Map(), by = new Map();
  for (const {passport} of all) { counts.set(id(passport), (counts.get(id(passport)) ?? 0) + 1); by.set(id(passport), passport); }
  const order = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a) || (a === "") - (b === "") || (a < b ? -1 : 1));
  if (order.length < 2) return [order, ""];
  const flats = order.filter(Boolean).map(i => flat(by.get(i))), fields = [...new Set(flats.flatMap(Object.keys))];
  const differing = fields.filter(k => !NOT_IN_ID.includes(k.split(".")[0]) && new Set(flats.map(f => String(f[k]))).size > 1);
  const what = differing.slice(0, 6).map(k => `${k} (${[...new Set(flats.map(f => String(f[k] ?? "none")))].slice(0, 4).join(" / ")})`).join(", ");
  const which = order.slice(0, 6).map((p, i) => `${dash(order, by.get(p))} ${p || "(none)"}`).join(", ");
  return [order, `⚠ ${order.length} passports on one axis: these numbers were measured differently and cannot be compared. `
    + `Lines: ${which}${order.length > 6 ? ", …" : ""}. They differ in ${what || "what is not recorded"}.`];
}
const dash = (order, passport) => DASHES[Math.min(DASHES.length - 1, Math.max(0, order.indexOf(id(passport))))];
function flat(value, prefix = "") {
  return Object.entries(value).reduce((all, [k, v]) =>
    v && typeof v === "object" ? {...all, ...flat(v, prefix + k + ".")} : {...all, [prefix + k]: v}, {});
}
