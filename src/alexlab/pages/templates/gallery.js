const controls = Object.fromEntries(['sort', 'class', 'uncertain', 'limit', 'count'].map(id => [id, document.getElementById(id)]));
const gallery = document.getElementById('gallery'), figures = [...gallery.children], counts = new Map();
const prob = figure => parseFloat(figure.dataset.prob), byName = new Intl.Collator(undefined, {numeric: true});
for (const figure of figures) counts.set(figure.dataset.class, (counts.get(figure.dataset.class) ?? 0) + 1);
for (const [name, count] of [...counts].sort(([a], [b]) => byName.compare(a, b))) controls.class.append(new Option(`${name} (${count})`, name));
const orders = {path: null, prob: (a, b) => prob(a) - prob(b), '-prob': (a, b) => prob(b) - prob(a),
  class: (a, b) => byName.compare(a.dataset.class, b.dataset.class) || prob(b) - prob(a)};
function update() {
  const order = orders[controls.sort.value], name = controls.class.value, limit = parseFloat(controls.limit.value);
  gallery.append(...(order ? [...figures].sort(order) : figures));
  for (const figure of figures)
    figure.hidden = name !== '' && figure.dataset.class !== name || controls.uncertain.checked && prob(figure) >= limit;
  controls.count.value = `${figures.filter(figure => !figure.hidden).length} of ${figures.length} images`;
}
for (const control of Object.values(controls)) control.addEventListener('input', update);
document.getElementById('controls').hidden = false;
update();
