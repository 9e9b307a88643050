"""How the page looks: one accent colour, system fonts, wide spacing, light and dark; nothing is fetched from elsewhere."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

SANS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
CSS = Path(__file__).with_name("page.css")

# Keeps ?project=ID in the address in step with the page, so that a reload, a copied link and the browser's Back find the
# project again.
PROJECT_IN_ADDRESS = """(id) => {
    const address = new URL(window.location);
    id ? address.searchParams.set("project", id) : address.searchParams.delete("project");
    if (window.openProject === undefined) {
        window.history.replaceState({}, "", address);
        window.addEventListener("popstate", () => window.location.reload());
    } else if (window.openProject !== id) {
        window.history.pushState({}, "", address);
    }
    window.openProject = id;
    return id;
}"""

# Gradio's sliders tell of the mouse only when a value is settled; keys settle one, too, half a second after the last.
KEYS_SETTLE_SLIDERS = """let settling;
document.addEventListener('keyup', ({target, key}) => {
    if (target.type !== 'range' || !/^(Arrow|Page|Home|End)/.test(key)) return;
    clearTimeout(settling);
    settling = setTimeout(() => target.dispatchEvent(new PointerEvent('pointerup', {bubbles: true})), 500);
});
document.addEventListener('keydown', ({target, key}) => {
    if (key === 'Enter' && target.type === 'number') target.blur();
});"""


def make_theme() -> gr.themes.Base:
    """The theme; what it cannot say is in page.css."""
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_lg,
        spacing_size=gr.themes.sizes.spacing_md,
        text_size=gr.themes.sizes.text_md,
        font=SANS,
        font_mono=MONO,
    )
    return theme.set(
        body_background_fill="#faf9f7",
        body_background_fill_dark="#161514",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#1f1e1c",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1f1e1c",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_border_width="1px",
        layout_gap="18px",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        input_border_color_focus="*primary_600",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_title_text_weight="600",
        block_label_text_weight="600",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        input_background_fill="#ffffff",
        input_background_fill_dark="#292724",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_dark="#292724",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_700",
        button_border_width="1px",
        slider_color="*primary_600",
    )
