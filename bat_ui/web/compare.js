// Sample grid, favourites and sliders: a click enlarges a picture, arrow keys walk through the grid, a star is told to the
// server, a slider moves the border between two pictures.  `element` and `trigger` are Gradio's.
const dialogOf = () => element.querySelector('dialog');
let shown = null;

function enlarge(look) {
    const dialog = dialogOf();
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
    if (event.target === dialogOf()) dialogOf().close();
});
element.addEventListener('keydown', (event) => {
    if (!dialogOf()?.open || !['ArrowLeft', 'ArrowRight', 'ArrowUp', 'ArrowDown'].includes(event.key)) return;
    event.preventDefault();
    const next = neighbour(shown, event.key);
    if (next) enlarge(next);
});
element.addEventListener('input', (event) => {
    event.target.closest('.ab')?.style.setProperty('--cut', event.target.value + '%');
});
