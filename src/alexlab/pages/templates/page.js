// A click on a column head sorts the table by it, a second click reverses the order; Enter does the same.
const sortBy = th => {
  const table = th.closest('table'), column = th.cellIndex, up = th.ariaSort !== 'ascending';
  for (const other of th.parentNode.cells) other.removeAttribute('aria-sort');
  th.setAttribute('aria-sort', up ? 'ascending' : 'descending');
  const value = row => { const cell = row.cells[column], text = cell.dataset.v ?? cell.textContent.trim();
    return text === '' || isNaN(text) ? text : Number(text); };
  [...table.tBodies[0].rows].sort((a, b) => { const x = value(a), y = value(b);
    return (typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === 'number' ? -1 : 1) * (up ? 1 : -1); })
    .forEach(row => table.tBodies[0].append(row));
};
document.querySelectorAll('th').forEach(th => {
  th.tabIndex = 0;
  th.addEventListener('click', () => sortBy(th));
  th.addEventListener('keydown', event => { if (event.key === 'Enter') sortBy(th); });
});
// A button copies a command.
if (navigator.clipboard) document.querySelectorAll('.command').forEach(command => {
  const text = command.textContent.trim(), button = command.appendChild(document.createElement('button'));
  button.textContent = 'Copy';
  button.addEventListener('click', async () => { await navigator.clipboard.writeText(text); button.textContent = 'Copied'; });
});
// Pointing at an entry of a legend fades the other series of the plots in its section.
document.querySelectorAll('.legend [data-series]').forEach(entry => {
  const section = entry.closest('section');
  const pick = event => {
    section.classList.toggle('faded', event.type === 'mouseenter');
    section.querySelectorAll('.series').forEach(series =>
      series.classList.toggle('picked', series.classList.contains(entry.dataset.series)));
  };
  entry.addEventListener('mouseenter', pick);
  entry.addEventListener('mouseleave', pick);
});
