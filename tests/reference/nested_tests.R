# Makes nested_tests.json: F tests of nested fixed parts by lmerTest and pbkrtest. Run in this folder: Rscript nested_tests.R
suppressMessages({library(lmerTest);library(pbkrtest);library(jsonlite)})
ctl <- lmerControl(optimizer="bobyqa", optCtrl=list(rhobeg=0.2,rhoend=1e-9,maxfun=1e5), calc.derivs=FALSE)
d <- read.csv("data/cake_unbalanced.csv", colClasses=c(recipe="factor",batch="factor",temperature="factor",heat="factor",block="factor"))
o <- read.csv("data/orthodont.csv", colClasses=c(Subject="factor",Sex="factor"))
out <- list()
one <- function(f, data) { m <- lmer(as.formula(f), data, control=ctl); r <- list(formula=f)
 for (k in c("Kenward-Roger","Satterthwaite")) { a <- drop1(m, ddf=k); r[[gsub("-","_",tolower(k))]] <- data.frame(term=rownames(a), df=a$NumDF, df_denom=a$DenDF, F=a[["F value"]], p=a[["Pr(>F)"]]) }
 r }
out$drop1 <- list(one("angle ~ recipe * heat + x + (1 | batch)", d), one("angle ~ recipe + heat * x + (1 | batch)", d), one("distance ~ age * Sex + (age | Subject)", o), one("distance ~ age + Sex + (1 | Subject)", o))
kr <- function(fl, fs, data) { DD <<- data; l <- eval(bquote(lmer(.(as.formula(fl)), DD, control=ctl))); s <- eval(bquote(lmer(.(as.formula(fs)), DD, control=ctl)))
 k <- KRmodcomp(l, s)$test["Ftest",]; sa <- SATmodcomp(l, s)$test
 list(large=fl, small=fs, kenward_roger=list(F=k$stat*1, df=k$ndf, df_denom=k$ddf, p=k$p.value, scaling=k$F.scaling), satterthwaite=list(F=sa$statistic, df=sa$ndf, df_denom=sa$ddf, p=sa$p.value)) }
out$nested <- list(
 kr("angle ~ recipe * heat + x + (1 | batch)", "angle ~ recipe + x + (1 | batch)", d),
 kr("angle ~ recipe * heat + x + (1 | batch)", "angle ~ x + (1 | batch)", d),
 kr("angle ~ temperature + (1 | batch)", "angle ~ temp + (1 | batch)", d),
 kr("distance ~ age * Sex + (age | Subject)", "distance ~ age + (age | Subject)", o))
out$software <- paste0("R ", getRversion(), ", lme4 ", packageVersion("lme4"), ", lmerTest ", packageVersion("lmerTest"), ", pbkrtest ", packageVersion("pbkrtest"))
writeLines(toJSON(out, digits=15, auto_unbox=TRUE, na="null", pretty=TRUE, dataframe="columns"), "nested_tests.json")
