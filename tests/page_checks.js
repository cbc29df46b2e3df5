// Of what is in sight: the least contrast (WCAG 2) of text and its background, and how many controls have no name.
() => {
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\d.]+/g).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    if (!element) return "rgb(255, 255, 255)";
    const colour = getComputedStyle(element).backgroundColor;
    return colour.startsWith("rgba") ? behind(element.parentElement) : colour;
  };
  const contrast = (element) => {
    const [more, less] = [getComputedStyle(element).color, behind(element)].map(light).sort((a, b) => b - a);
    return (more + 0.05) / (less + 0.05);
  };
  const speaks = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const texts = [...document.querySelectorAll("header *, main *:not(svg *)")]
    .filter((element) => speaks(element) && !element.closest(".dead, .frame, .key, [aria-disabled]"));
  const named = (element) => element.getAttribute("aria-label") || element.textContent.trim() || element.labels?.length;
  const controls = [...document.querySelectorAll("main :is(a, button, input, select)")];
  return [Math.min(...texts.map(contrast)), controls.filter((each) => !named(each)).length];
};
