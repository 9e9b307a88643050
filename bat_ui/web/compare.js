// Sample grid, favourites and sliders: a click enlarges a picture, arrow keys walk through the grid, a star is told to the
// server, a slider moves the border between two pictures.  `element` and `trigger` are Gradio's.
// The dialog is outside of `element`, which is drawn anew with each checkpoint and would close it.
const dialog = document.createElement('dialog');
dialog.className = 'enlarged';
dialog.ariaLabel = 'Enlarged picture';
dialog.innerHTML = '<form method="dialog"><button aria-label="Close">×</button></form><img alt=""><p></p>';
element.closest('.gradio-container').append(dialog);
let shown = null;

function enlarge(look) {
    shown = look;
    dialog.querySelector('img').src = look.querySelector('img').src;
    dialog.querySelector('img').alt = look.querySelector('img').alt;
    dialog.querySelector('p').textContent = look.querySelector('img').alt;
    if (!dialog.open) dialog.showModal();
}

function neighbour(look, key) {
    if (key === 'ArrowLeft' || key === 'ArrowRight') {
        const all = [...look.closest('tr, .strip').querySelectorAll('.look')];
        return all[all.indexOf(look) + (key === 'ArrowRight' ? 1 : -1)];
    }
    const cell = look.closest('td');
    if (!cell) return null;
    const rows = [...cell.closest('table').querySelectorAll('tr:has(.look)')];
    return rows[rows.indexOf(cell.parentElement) + (key === 'ArrowDown' ? 1 : -1)]?.cells[cell.cellIndex]?.querySelector('.look');
}

element.addEventListener('click', (event) => {
    const star = event.target.closest('[data-star]'), look = event.target.closest('.look');
    if (star) trigger('click', {run: star.dataset.run, step: Number(star.dataset.step), picture: star.dataset.star});
    if (look) enlarge(look);
});
dialog.addEventListener('click', (event) => {
    if (event.target === dialog) dialog.close();
});
dialog.addEventListener('keydown', (event) => {
    if (!shown.isConnected || !['ArrowLeft', 'ArrowRight', 'ArrowUp', 'ArrowDown'].includes(event.key)) return;
    event.preventDefault();
    const next = neighbour(shown, event.key);
    if (next) enlarge(next);
});
element.addEventListener('input', (event) => {
    event.target.closest('.ab')?.style.setProperty('--cut', event.target.value + '%');
});
