// The site's frame. Pages come from ../docs by way of scripts/site.py, which writes `staged/` first.
import {readFileSync} from 'node:fs';
import {themes} from 'prism-react-renderer';

const read = (path) => JSON.parse(readFileSync(new URL(path, import.meta.url), 'utf8'));
const settings = read('./settings.json');
const {version} = read('./staged/home.json');

export default {
  title: 'torchpipe',
  tagline: 'Serving inside PyTorch with many threads',
  favicon: 'img/logo.svg',
  url: settings.url,
  baseUrl: settings.baseUrl,
  trailingSlash: true, // any plain server of files serves folders
  onBrokenLinks: 'throw',
  onBrokenAnchors: 'throw',
  onDuplicateRoutes: 'throw',
  i18n: {
    defaultLocale: 'en',
    locales: ['en', 'zh'],
    localeConfigs: {en: {label: 'English', htmlLang: 'en'}, zh: {label: '中文', htmlLang: 'zh-CN'}},
  },
  markdown: {
    format: 'detect', // .md is plain Markdown, as GitHub reads it
    mermaid: true,
    hooks: {onBrokenMarkdownLinks: 'throw', onBrokenMarkdownImages: 'throw'},
  },
  future: {v4: {removeLegacyPostBuildHeadAttribute: true}, faster: true},
  presets: [
    [
      'classic',
      {
        docs: {path: 'staged/docs', routeBasePath: '/', sidebarPath: './sidebars.js', numberPrefixParser: false,
          versions: {current: {label: version}}},
        blog: false,
        theme: {customCss: './src/css/site.css'},
      },
    ],
  ],
  themes: [
    '@docusaurus/theme-mermaid',
    [
      '@easyops-cn/docusaurus-search-local',
      {
        language: ['en', 'zh'],
        docsRouteBasePath: '/',
        docsDir: 'staged/docs',
        indexBlog: false,
        hashed: true,
        highlightSearchTermsOnTargetPage: true,
        explicitSearchResultPath: true,
      },
    ],
  ],
  headTags: [
    {
      tagName: 'link',
      attributes: {
        rel: 'alternate',
        type: 'application/atom+xml',
        title: 'torchpipe: changelog',
        href: `${settings.baseUrl}changelog.xml`,
      },
    },
  ],
  themeConfig: {
    colorMode: {respectPrefersColorScheme: true},
    docs: {sidebar: {hideable: true, autoCollapseCategories: true}},
    navbar: {
      title: 'torchpipe',
      logo: {alt: '', src: 'img/logo.svg'},
      items: [
        {type: 'docSidebar', sidebarId: 'pages', position: 'left', label: 'Docs'},
        {type: 'html', position: 'left', value: `<span class="release">${version}</span>`},
        {type: 'localeDropdown', position: 'right'},
        ...(settings.repository ? [{href: settings.repository, position: 'right', label: 'Source'}] : []),
      ],
    },
    footer: {
      links: [
        {to: '/changelog', label: 'Changelog'},
        {to: 'pathname:///changelog.xml', label: 'Changes as a feed', target: '_self'},
      ],
      copyright: `torchpipe ${version} · Apache-2.0`,
    },
    prism: {theme: themes.github, darkTheme: themes.oneDark, additionalLanguages: ['bash', 'toml', 'docker', 'protobuf']},
    mermaid: {theme: {light: 'neutral', dark: 'dark'}},
  },
};
