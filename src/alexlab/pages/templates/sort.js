document.querySelectorAll('th').forEach(th => th.addEventListener('click', () => {
  const table = th.closest('table'), column = [...th.parentNode.children].indexOf(th), up = th.dataset.up !== '1';
  th.dataset.up = up ? '1' : '0';
  const value = row => { const cell = row.children[column], n = parseFloat(cell.dataset.v ?? cell.textContent);
    return isNaN(n) ? cell.textContent : n; };
  [...table.tBodies[0].rows].sort((a, b) => { const x = value(a), y = value(b);
    return (typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === 'number' ? -1 : 1) * (up ? 1 : -1); })
    .forEach(row => table.tBodies[0].append(row));
}));
