const gallery = document.getElementById('suspects'), figures = [...gallery.children];
const controls = Object.fromEntries(['pair', 'undecided', 'count'].map(id => [id, document.getElementById(id)]));
const storageKey = `alexlab-labels-${gallery.dataset.key}`, pairs = new Map();
const history = [];  // [figure, its decision before] of each change
let decisions = {}, stores = true;
function load() {  // another tab may have stored more
  if (!stores) return;
  try { decisions = JSON.parse(localStorage.getItem(storageKey)) ?? {}; } catch { stores = false; }
}
load();
for (const figure of figures) pairs.set(figure.dataset.pair, (pairs.get(figure.dataset.pair) ?? 0) + 1);
for (const [name, count] of [...pairs].sort(([, a], [, b]) => b - a)) controls.pair.append(new Option(`${name} (${count})`, name));
function show() {
  figures.forEach((figure, number) => {
    const decision = decisions[number];
    if (decision) figure.dataset.chosen = decision; else delete figure.dataset.chosen;
    figure.querySelectorAll('button').forEach(button => button.ariaPressed = button.dataset.decision === decision);
  });
  const lost = stores ? '' : '; this browser does not store decisions: download them before you close the page';
  controls.count.value = `${Object.keys(decisions).length} of ${figures.length} decided${lost}`;
}
function filter() {
  figures.forEach((figure, number) =>
    figure.hidden = controls.pair.value !== '' && figure.dataset.pair !== controls.pair.value || controls.undecided.checked && number in decisions);
}
function decide(figure, decision) {
  const number = figures.indexOf(figure);
  load();
  history.push([figure, decisions[number]]);
  if (decision === undefined) delete decisions[number]; else decisions[number] = decision;
  try { localStorage.setItem(storageKey, JSON.stringify(decisions)); } catch { stores = false; }
  show();
}
function undo() {
  const [figure, decision] = history.pop() ?? [];
  if (!figure) return;
  decide(figure, decision);
  history.pop();
  filter();
  figure.focus();
}
function move(figure, step) {
  const visible = figures.filter(other => !other.hidden), number = visible.indexOf(figure);
  visible[Math.min(visible.length - 1, Math.max(0, number < 0 ? 0 : number + step))]?.focus();
}
const perRow = () => figures.filter(figure => !figure.hidden).findIndex((figure, _, [first]) => figure.offsetTop > first.offsetTop);
const keys = {a: 'accept', r: 'reject', x: 'remove'};
document.addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches('select, input')) return;
  const current = document.activeElement.closest('#suspects > figure'), row = perRow();
  const steps = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: row < 0 ? Infinity : row, ArrowUp: row < 0 ? -Infinity : -row};
  if (event.key in steps) move(current, steps[event.key]);
  else if (event.key === 'u') undo();
  else if (current && event.key in keys) {
    decide(current, keys[event.key]);
    move(current, 1);
  } else return;
  event.preventDefault();
});
gallery.addEventListener('click', event => {
  const figure = event.target.closest('figure'), chosen = event.target.dataset.decision;
  if (figure && chosen) decide(figure, figure.dataset.chosen === chosen ? undefined : chosen);
});
const others = JSON.parse(document.getElementById('others').textContent);
const decisionsCsv = () => [gallery.dataset.header, ...figures.map((figure, number) => `${figure.dataset.cells},${decisions[number] ?? ''}`),
  ...others.map(cells => `${cells},`)].join('\r\n') + '\r\n';
document.getElementById('download').addEventListener('click', () => {
  const link = Object.assign(document.createElement('a'), {href: URL.createObjectURL(new Blob([decisionsCsv()], {type: 'text/csv'})), download: 'decisions.csv'});
  link.click();
});
addEventListener('storage', event => { if (event.key === storageKey) { load(); show(); filter(); } });
controls.pair.addEventListener('input', filter);
controls.undecided.addEventListener('input', filter);
document.getElementById('controls').hidden = false;
show();
