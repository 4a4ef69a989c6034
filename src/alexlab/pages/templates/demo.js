const drop = document.getElementById('drop'), file = document.getElementById('file');
const error = document.getElementById('error'), result = document.getElementById('result');
const element = (name, parent, text) => { const e = parent.appendChild(document.createElement(name));
  if (text !== undefined) e.textContent = text; return e; };
async function predict(image) {
  error.textContent = ''; result.textContent = 'predicting ...';
  if (image.size > maxBytes) { result.textContent = ''; error.textContent = tooLarge; return; }
  const response = await fetch('predict', {method: 'POST', body: image}).catch(problem => ({ok: false, problem}));
  const content = response.json ? await response.json().catch(() => ({error: 'the server failed'})) : {error: 'the server does not respond'};
  result.textContent = '';
  if (!response.ok) { error.textContent = content.error; return; }
  const images = element('div', result); images.className = 'images';
  for (const [name, data] of content.images) {
    const figure = element('figure', images), image = element('img', figure);
    image.src = data; image.alt = name; element('figcaption', figure, name);
  }
  for (const prediction of content.predictions) {
    const bar = element('div', result); bar.className = 'bar';
    element('span', bar, prediction.class); element('i', element('span', bar)).style.width = 100 * prediction.prob + '%';
    element('span', bar, prediction.prob.toFixed(4));
  }
}
drop.onclick = () => file.click(); drop.onkeydown = event => { if (event.key === 'Enter') file.click(); };
file.onchange = () => { if (file.files[0]) predict(file.files[0]); };
for (const name of ['dragover', 'dragleave', 'drop']) drop.addEventListener(name, event => {
  event.preventDefault(); drop.className = name === 'dragover' ? 'over' : '';
  if (name === 'drop' && event.dataTransfer.files[0]) predict(event.dataTransfer.files[0]); });
