"use strict";
// The browser of completions. Text of a run only ever becomes textContent: it cannot be markup.

const ROW = 24; // height of a problem in the list, in pixels, as in page.css
const SHOWN = 6; // different completions of a column before `more` is asked for
const LEVELS = [0.02, 0.1, 0.4, 1, 2.5]; // nats at which the shading of a token gets darker
const MODES = { log_prob: "−log p", entropy: "entropy", none: "none" };
const ORDERS = { run: "as in the run", wrong: "most wrong", right: "most right", divided: "most divided" };

const byId = (id) => document.getElementById(id);
function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
}

let data, state, first, found, chosen, selects;

async function read() {
  const bytes = Uint8Array.from(atob(byId("data").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const has = (name) => Object.hasOwn(data.columns, name);
const value = (name, row) => (has(name) ? data.columns[name].values[data.columns[name].at[row]] : null);
const shown = (name, x) => (x === null ? (name === "step" ? "final" : "—") : name === "tag" ? `tag ${x}` : String(x));

// What one can choose by: columns that say whose completion it is, if they differ.
function choices() {
  const names = [...data.choosers.filter((name) => name !== "run"), "tag", "reason", "strategy"];
  const several = ["run", ...names].filter((name) => has(name) && data.columns[name].values.length > 1);
  return several.filter((name) => data.columns[name].values.length < 500);
}

// The places in a column that every run has among the rows chosen so far, in their order.
function common(name, choice) {
  const seen = data.columns[name].values.map(() => new Set());
  const tests = Object.entries(choice).filter(([, at]) => at !== "all");
  for (let row = 0; row < data.rows; row++)
    if (tests.every(([key, at]) => data.columns[key].at[row] === at))
      seen[data.columns[name].at[row]].add(data.columns.run.at[row]);
  const places = seen.map((_, at) => at).filter((at) => seen[at].size === data.columns.run.values.length);
  return places.sort((a, b) => rank(data.columns[name], a) - rank(data.columns[name], b));
}

// At first: the last step, the first seed (a tag means another thing in each), the arm that uses the
// most tags (of several the last), by tag. Of several runs, what all have, by run.
function defaults(names) {
  const choice = Object.fromEntries(names.map((name) => [name, "all"]));
  if (names.includes("step")) choice.step = common("step", choice).at(-1) ?? "all"; // none: at the end
  if (names.includes("seed")) choice.seed = common("seed", choice)[0] ?? "all";
  const key = names.find((name) => ["arm", "policy", "protocol", "cell"].includes(name));
  let columns = names.includes("run") ? "run" : names.includes("tag") ? "tag" : key ?? names[0] ?? "";
  if (key) {
    const arms = common(key, choice);
    const tags = new Map(arms.map((at) => [at, new Set()]));
    const tests = Object.entries(choice).filter(([, at]) => at !== "all");
    for (let row = 0; row < data.rows; row++)
      if (tests.every(([name, at]) => data.columns[name].at[row] === at))
        tags.get(data.columns[key].at[row])?.add(has("tag") ? data.columns.tag.at[row] : 0);
    const most = Math.max(0, ...arms.map((at) => tags.get(at).size));
    if (most > 1) choice[key] = arms.findLast((at) => tags.get(at).size === most);
    else if (columns !== "run") columns = key;
  }
  const shade = Object.keys(data.scores).length ? "log_prob" : "none";
  return { choice, verdict: "all", text: "", columns, order: "run", shade };
}

// The rows that match, by problem; counted anew whenever a filter changes.
function find() {
  const tests = Object.entries(state.choice).filter(([, at]) => at !== "all");
  const columns = tests.map(([name, at]) => [data.columns[name].at, at]);
  const wanted = state.text.toLowerCase();
  const texts = data.columns.completion;
  const matching = wanted && texts && texts.values.map((text) => String(text).toLowerCase().includes(wanted));
  const correct = data.columns.correct;
  const prompts = data.columns.prompt;
  const problems = new Map();
  for (let row = 0; row < data.rows; row++) {
    if (columns.some(([at, one]) => at[row] !== one)) continue;
    const right = correct ? correct.values[correct.at[row]] === true : false;
    if (state.verdict !== "all" && right !== (state.verdict === "right")) continue;
    if (matching && !matching[texts.at[row]]) continue;
    const prompt = prompts ? prompts.at[row] : 0;
    if (!problems.has(prompt)) problems.set(prompt, { prompt, rows: [], right: 0 });
    problems.get(prompt).rows.push(row);
    problems.get(prompt).right += right;
  }
  found = [...problems.values()];
  const share = (problem) => problem.right / problem.rows.length;
  const orders = {
    wrong: (a, b) => share(a) - share(b),
    right: (a, b) => share(b) - share(a),
    divided: (a, b) => Math.abs(share(a) - 0.5) - Math.abs(share(b) - 0.5),
  };
  if (orders[state.order]) found.sort(orders[state.order]);
  const rows = found.reduce((sum, problem) => sum + problem.rows.length, 0);
  byId("count").textContent = `${rows.toLocaleString("en")} of ${data.rows.toLocaleString("en")}, ` +
    `${found.length.toLocaleString("en")} problems`;
  chosen = Math.max(0, found.findIndex((problem) => problem.prompt === state.prompt));
  byId("spacer").style.height = `${found.length * ROW}px`;
  choose(chosen);
}

// Only the problems in sight are elements.
function drawProblems() {
  const list = byId("problems");
  const start = Math.max(0, Math.floor(list.scrollTop / ROW) - 5);
  const end = Math.min(found.length, start + Math.ceil(list.clientHeight / ROW) + 10);
  byId("spacer").replaceChildren(...found.slice(start, end).map((problem, i) => {
    const row = make("div", "problem");
    row.append(make("span", "share", `${problem.right}/${problem.rows.length}`));
    row.append(String(data.columns.prompt ? data.columns.prompt.values[problem.prompt] : "").replace(/\s+/g, " "));
    row.setAttribute("role", "option");
    row.setAttribute("aria-selected", String(start + i === chosen));
    row.id = `problem-${start + i}`;
    row.style.top = `${(start + i) * ROW}px`;
    row.addEventListener("click", () => choose(start + i));
    return row;
  }));
  list.setAttribute("aria-activedescendant", `problem-${chosen}`);
}

function choose(place) {
  chosen = Math.min(Math.max(place, 0), Math.max(found.length - 1, 0));
  state.prompt = found[chosen]?.prompt;
  const list = byId("problems");
  const top = chosen * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  drawProblems();
  drawTraces();
}

function drawTraces() {
  const problem = found[chosen];
  byId("shades").hidden = state.shade === "none";
  if (!problem) {
    byId("asked").textContent = "No completion matches.";
    byId("columns").replaceChildren();
    return;
  }
  byId("asked").replaceChildren(String(value("prompt", problem.rows[0])), " ");
  const unscored = state.shade !== "none" && !problem.rows.some((row) => row in data.scores);
  byId("asked").append(make("small", "", `${problem.right} of ${problem.rows.length} right` +
    (unscored ? " · no token scores here: see “what is shown”" : "")));
  const column = state.columns ? data.columns[state.columns] : null;
  const groups = new Map();
  for (const row of problem.rows) {
    const at = column ? column.at[row] : 0;
    if (!groups.has(at)) groups.set(at, []);
    groups.get(at).push(row);
  }
  const places = [...groups.keys()].sort((a, b) => rank(column, a) - rank(column, b));
  byId("columns").replaceChildren(...places.map((at) => drawColumn(column ? column.values[at] : null, groups.get(at))));
}

// Numbers in their order, what is final last, texts as they came.
function rank(column, at) {
  const x = column ? column.values[at] : 0;
  return typeof x === "number" ? x : x === null ? Infinity : at;
}

function drawColumn(name, rows) {
  const column = make("div");
  const right = rows.filter((row) => value("correct", row) === true).length;
  const heading = make("h3", "", state.columns ? shown(state.columns, name) : "");
  heading.append(" ", make("small", "", `${right} of ${rows.length} right`));
  column.append(heading);
  const alike = new Map(); // completions that read the same are shown once
  for (const row of rows) {
    const key = [value("completion", row), value("correct", row), value("reason", row), ...others(row)].join("\0");
    if (!alike.has(key)) alike.set(key, []);
    alike.get(key).push(row);
  }
  const sets = [...alike.values()];
  const show = (part) => part.forEach((each) => column.append(drawTrace(each)));
  show(sets.slice(0, SHOWN));
  if (sets.length > SHOWN) {
    const button = make("button", "more", `${sets.length - SHOWN} more`);
    button.type = "button";
    button.addEventListener("click", () => { button.remove(); show(sets.slice(SHOWN)); });
    column.append(button);
  }
  return column;
}

// What tells a trace from its neighbours in a column, beside its text.
const others = (row) => Object.entries(state.choice)
  .filter(([name, at]) => at === "all" && name !== state.columns && !["reason", "strategy"].includes(name))
  .filter(([name]) => name === "step" || value(name, row) !== null)
  .map(([name]) => (name === "tag" || name === "step" ? "" : `${name} `) + shown(name, value(name, row)));

function drawTrace(rows) {
  const row = rows[0];
  const right = value("correct", row) === true;
  const card = make("article", right ? "trace right" : "trace");
  const header = make("header");
  header.append(make("b", "", `${right ? "✓" : "✗"} ${value("reason", row) ?? ""}`));
  const validity = value("validity", row);
  const told = [
    rows.length > 1 ? `×${rows.length}` : null,
    value("strategy", row),
    typeof validity === "number" ? `${Math.round(100 * validity)}% valid steps` : null,
    value("steps", row) ? null : value("answer", row) === null ? null : `answer: ${value("answer", row)}`,
    ...others(row),
  ].filter((text) => text !== null);
  header.append(...told.map((text) => ` · ${text}`));
  card.append(header);
  const scored = rows.find((each) => data.scores[each]);
  drawText(card, String(value("completion", row) ?? ""), value("steps", row), data.scores[scored], value("tag", row));
  return card;
}

// The text, a line a step; steps are [gap, length, ...] in characters, negative where not valid.
function drawText(card, text, steps, scores, tag) {
  const characters = Array.from(text);
  const tokens = state.shade === "none" || !scores ? null : tokensOf(scores, characters);
  if (tokens) card.append(drawFork(tokens[0], tag));
  const line = (start, end, kind) => {
    while (end > start && characters[end - 1] === " ") end -= 1;
    const element = make("div", `step ${kind}`);
    if (!tokens) element.textContent = characters.slice(start, end).join("");
    else element.append(...spans(characters, start, end, tokens));
    card.append(element);
  };
  const places = [];
  for (let i = 0, at = 0; i < (steps ?? []).length; i += 2) {
    const start = at + steps[i];
    at = start + Math.abs(steps[i + 1]);
    const kind = steps[i + 1] < 0 ? "invalid" : "valid";
    const word = kind === "invalid" && !characters.slice(start, at).includes(" ");
    // Words that form no step are steps of their own; they share a line.
    if (word && places.at(-1)?.word) places.at(-1).end = at;
    else places.push({ start, end: at, kind, word });
  }
  if (places[0]?.start) line(0, places[0].start, "");
  // What separates two steps, such as a comma, stays at the end of the first.
  places.forEach(({ start, end, kind }, i) => line(start, places[i + 1]?.start ?? end, kind));
  let rest = places.at(-1)?.end ?? 0;
  if (rest && characters[rest] === " ") rest += 1;
  if (rest < characters.length) line(rest, characters.length, "");
}

function tokensOf([ends, logProbs, entropies], characters) {
  const tokens = ends.map((end, i) => ({
    start: i ? ends[i - 1] : 0, end, logProb: logProbs[i], entropy: entropies[i],
  }));
  // Not the fork, nor what has no place in the text, as <eos>.
  const drawn = tokens.slice(1).filter(({ start, end }) => characters.slice(start, end).join("").trim());
  const most = Math.max(...drawn.map((token) => token.entropy));
  for (const token of drawn) token.peak = token.entropy === most;
  return tokens;
}

const level = (token) => {
  const nats = state.shade === "entropy" ? token.entropy : -token.logProb;
  return LEVELS.filter((least) => nats >= least).length;
};
const told = (token) => `p ${Math.exp(token.logProb).toFixed(3)}, −log p ${(-token.logProb).toFixed(2)}, ` +
  `entropy ${token.entropy.toFixed(2)} nats`;

function drawFork(token, tag) {
  const fork = make("span", `fork token level-${level(token)}`, `fork: tag ${tag}  p ${Math.exp(token.logProb).toFixed(2)}  H ${token.entropy.toFixed(2)}`);
  fork.title = `the fork: ${told(token)}`;
  return fork;
}

function spans(characters, start, end, tokens) {
  const within = tokens.filter((token) => token.end > start && token.start < end);
  return within.map((token) => {
    const text = characters.slice(Math.max(start, token.start), Math.min(end, token.end)).join("");
    const span = make("span", `token level-${level(token)}${token.peak ? " peak" : ""}`, text);
    span.title = (token.peak ? "largest entropy: " : "") + told(token);
    return span;
  });
}

// Filters: a select for each choice, then verdict, columns, order, shading and the search.
function drawFilters(names) {
  const form = byId("filters");
  selects = Object.create(null); // a column may have any name
  const select = (name, options, get, set) => {
    const label = make("label", "", name);
    const element = make("select");
    element.setAttribute("aria-label", name);
    for (const [key, text] of options) {
      const option = make("option", "", text);
      option.value = key;
      element.append(option);
    }
    element.addEventListener("change", () => { set(element.value); find(); });
    label.append(element);
    form.append(label);
    selects[name] = { element, show: () => { element.value = String(get()); } };
  };
  for (const name of names) {
    const values = data.columns[name].values;
    const places = values.map((_, at) => at).sort((a, b) => rank(data.columns[name], a) - rank(data.columns[name], b));
    select(name, [["all", "all"], ...places.map((at) => [at, shown(name, values[at])])],
      () => state.choice[name], (key) => { state.choice[name] = key === "all" ? key : Number(key); });
  }
  const plain = (name, options, key) => select(name, Object.entries(options), () => state[key], (x) => { state[key] = x; });
  plain("verdict", { all: "all", right: "right", wrong: "wrong" }, "verdict");
  plain("columns", Object.fromEntries([...names.map((name) => [name, name]), ["", "none"]]), "columns");
  plain("order", ORDERS, "order");
  if (Object.keys(data.scores).length) plain("shading", MODES, "shade");
  const label = make("label", "", "search");
  const search = make("input");
  search.type = "search";
  search.id = "search";
  search.addEventListener("input", () => { state.text = search.value; find(); });
  label.append(search);
  form.append(label);
  form.addEventListener("submit", (event) => event.preventDefault());
}

function showFilters() {
  for (const each of Object.values(selects)) each.show();
  byId("search").value = state.text;
}

function reset() {
  state = structuredClone(first);
  showFilters();
  find();
}

function turn(name, by) {
  if (!selects?.[name]) return;
  const element = selects[name].element;
  const count = element.options.length;
  element.selectedIndex = (element.selectedIndex + by + count) % count;
  element.dispatchEvent(new Event("change"));
}

function changeTheme() {
  const root = document.documentElement;
  const themes = ["system", "light", "dark"];
  const next = themes[(themes.indexOf(root.dataset.theme ?? "system") + 1) % themes.length];
  root.dataset.theme = next;
  byId("theme").textContent = `theme: ${next}`;
}

const arm = () => ["arm", "policy", "protocol", "cell"].find((name) => selects?.[name]);
const KEYS = {
  j: () => choose(chosen + 1), ArrowDown: () => choose(chosen + 1),
  k: () => choose(chosen - 1), ArrowUp: () => choose(chosen - 1),
  "]": () => turn("step", 1), "[": () => turn("step", -1),
  ".": () => turn("tag", 1), ",": () => turn("tag", -1),
  a: () => turn(arm(), 1), A: () => turn(arm(), -1),
  v: () => turn("verdict", 1), c: () => turn("columns", 1), o: () => turn("order", 1),
  s: () => turn("shading", 1), r: reset,
  "/": () => byId("search").focus(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const typing = ["INPUT", "SELECT"].includes(event.target.tagName);
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const sections = document.querySelectorAll("nav a");
  const inList = !event.key.startsWith("Arrow") || event.target.id === "problems";
  if (event.key === "t") changeTheme();
  else if (event.key === "?") byId("help").showModal();
  else if (/^[1-9]$/.test(event.key) && sections[event.key - 1]) sections[event.key - 1].click();
  else if (data && KEYS[event.key] && inList) KEYS[event.key]();
  else return;
  event.preventDefault();
});
byId("theme").addEventListener("click", changeTheme);
byId("help-button").addEventListener("click", () => byId("help").showModal());

async function start() {
  if (byId("browser") && typeof DecompressionStream === "undefined") {
    byId("count").textContent = "This browser cannot unpack the completions (it has no DecompressionStream); open the page in a newer one.";
  } else if (byId("browser")) {
    data = await read();
    const names = choices();
    first = defaults(names);
    drawFilters(names);
    byId("problems").addEventListener("scroll", drawProblems);
    addEventListener("resize", drawProblems);
    reset();
  }
  performance.mark("ready");
  document.documentElement.dataset.ready = "yes";
}
start();
