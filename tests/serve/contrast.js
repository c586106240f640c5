// How light the page is, 0 to 1, and the contrast of each text with what is behind it, as WCAG 2 has it for AA.
() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((value, at) => a * value + (1 - a) * below[at]);
  const light = (colour) => {
    const linear = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = colour.map((value) => linear(value / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const canvasColour = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
  const ground = (element) => {
    const below = element.parentElement && element.tagName !== "DIALOG" ? ground(element.parentElement) : canvasColour;
    return over(rgba(getComputedStyle(element).backgroundColor), below);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const open = document.querySelector("dialog[open]");
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const style = getComputedStyle(element);
    const visible = element.checkVisibility({visibilityProperty: true, opacityProperty: true});
    if (!visible || !walker.currentNode.data.trim()) continue;
    if (element.closest(".unseen, .skip, noscript, :disabled") || (open && !open.contains(element))) continue;
    let opacity = 1;
    for (let each = element; each; each = each.parentElement) opacity *= getComputedStyle(each).opacity;
    const below = ground(element);
    const [r, g, b, a] = rgba(style.color);
    const both = [light(over([r, g, b, a * opacity], below)), light(below)].sort((one, two) => two - one);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const ratio = (both[0] + 0.05) / (both[1] + 0.05);
    found.push({text: walker.currentNode.data.trim().slice(0, 40), ratio, enough: ratio >= (large ? 3 : 4.5)});
  }
  return {paper: light(ground(document.body)), found};
}
